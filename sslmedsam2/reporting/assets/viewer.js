// The case view: loads a series' script when it is opened, and shows its volumes in NiiVue.
"use strict";

// Scripts in cases/ call deliver(); a page opened from a file may not fetch data, but may load
// scripts. The last few series are kept, so that going back and forth is quick.
const qcCases = (() => {
  const KEPT = 6;
  const known = new Map();
  const waiting = new Map();

  function addScript(source) {
    return new Promise((resolve, reject) => {
      const script = document.createElement("script");
      script.src = source;
      script.onload = () => { script.remove(); resolve(); };
      script.onerror = () => { script.remove(); reject(new Error(`${source} is missing beside this page.`)); };
      document.head.append(script);
    });
  }

  function deliver(id, content) {
    known.set(id, content);
    if (known.size > KEPT) known.delete(known.keys().next().value);
  }

  async function load(id) {
    if (!known.has(id)) {
      if (!waiting.has(id)) waiting.set(id, addScript(`cases/${id}.js`).finally(() => waiting.delete(id)));
      await waiting.get(id);
    }
    const content = known.get(id);
    // Used last, forgotten last.
    deliver(id, content);
    return content;
  }

  return { deliver, load, addScript };
})();

const shortNumber = (value) => (Math.abs(value) >= 100 ? value.toFixed(0) : String(Number(value.toPrecision(3))));

const qcVolumes = (() => {
  const { element } = qcTable;
  // Orange, magenta and blue keep apart for colour-blind eyes. Labels: see page_volumes.py.
  const COLOURS = { prediction: [255, 158, 46], extra: [235, 51, 148], missed: [48, 176, 255] };
  const LABEL_COLOURS = {
    prediction: [COLOURS.prediction, COLOURS.prediction, null],
    guess: [COLOURS.prediction, COLOURS.prediction, null],
    reference: [COLOURS.missed, null, COLOURS.missed],
    both: [COLOURS.prediction, COLOURS.extra, COLOURS.missed],
  };
  const LEGENDS = {
    prediction: [["prediction", "Prediction"]],
    guess: [["prediction", "A guess, not a prediction"]],
    reference: [["missed", "Reference"]],
    both: [["prediction", "Both agree"], ["extra", "Prediction only"], ["missed", "Reference only"]],
  };
  // Azimuth and elevation of the eye: the patient faces it, turned a little, the liver in front.
  const FROM_THE_FRONT = [160, 15];
  // Depth, azimuth and elevation of the plane that cuts the image's front half off; masks stay.
  const FRONT_CUT = [0, 180, 0];
  const NO_CUT = [2, 0, 0];
  let viewer = null;
  let current = null;
  let isCut = false;

  async function start() {
    if (viewer) return viewer;
    if (!window.niivue) await qcCases.addScript("assets/niivue.umd.js");
    if (!document.createElement("canvas").getContext("webgl2")) {
      throw new Error("This browser offers no WebGL 2, which the volumes need.");
    }
    const made = new niivue.Niivue({
      backColor: [0, 0, 0, 1],
      crosshairColor: [0.45, 0.75, 1, 0.8],
      // Thinner lines vanish between the pixels of a small screen.
      crosshairWidth: window.innerWidth < 700 ? 2.5 : 1.2,
      crosshairWidthUnit: "mm",
      fontColor: [1, 0.93, 0.6, 1],
      fontMinPx: 15,
      showAllOrientationMarkers: true,
      multiplanarPadPixels: 10,
      dragAndDropEnabled: false,
      isColorbar: false,
      isOrientCube: false,
      sagittalNoseLeft: true,
      isRadiologicalConvention: true,
      loadingText: "",
      logLevel: "error",
      multiplanarShowRender: niivue.SHOW_RENDER.ALWAYS,
      // Left to itself it lays all in one row of small pictures for some shapes of volume.
      multiplanarLayout: niivue.MULTIPLANAR_TYPE.GRID,
      show3Dcrosshair: false,
      viewModeHotKey: "",
      clipPlaneHotKey: "",
      cycleClipPlaneHotKey: "",
      // Without a colour the cut surface shows the image.
      clipPlaneColor: [0, 0, 0, 0],
    });
    // In a closed case the stage has no size, and NiiVue cannot draw on nothing.
    const resize = made.resizeListener.bind(made);
    made.resizeListener = () => { if (element("viewer").offsetWidth) resize(); };
    await made.attachToCanvas(element("viewer"));
    await made.setVolumeRenderIllumination(0.6);
    made.setRenderAzimuthElevation(...FROM_THE_FRONT);
    made.onLocationChange = tellPlace;
    viewer = made;
    return viewer;
  }

  // Slices are counted as in the previews: from the feet, the front and the patient's right. The
  // viewer counts voxels towards right, front and head.
  function tellPlace({ mm, vox, values }) {
    const { labels, image, slices, block, area, masks } = current;
    const [nx, ny] = [1, 2].map((axis) => image.dimsRAS[axis]);
    const places = [nx - 1 - vox[0], ny - 1 - vox[1], vox[2]];
    const slice = (axis) => {
      const middle = places[axis] * block[axis] + Math.ceil(block[axis] / 2);
      return `${Math.min(Math.max(middle, 1), slices[axis])} of ${slices[axis]}`;
    };
    const side = (value, [less, more]) => `${value < 0 ? less : more} ${Math.abs(value).toFixed(0)}`;
    const shown = labels.img;
    labels.img = area;
    const label = labels.getValue(...vox.slice(0, 3));
    labels.img = shown;
    const grey = values[0].value;
    element("location").textContent = [
      `axial ${slice(2)}, coronal ${slice(1)}, sagittal ${slice(0)}`,
      `${side(mm[0], "LR")}, ${side(mm[1], "PA")}, ${side(mm[2], "IS")} mm`,
      `value ${shortNumber(grey)}`,
      label ? (LEGENDS[masks][label - 1] || LEGENDS[masks][0])[1] : "outside the mask",
    ].join(" \u00b7 ");
  }

  // A voxel is on the outline if a neighbour in its axial slice has another label.
  function outlineOf(area, [, nx, ny]) {
    const found = new Uint8Array(area.length);
    const steps = [[1, nx], [nx, ny]];
    for (let at = 0; at < area.length; at += 1) {
      if (area[at] === 0) continue;
      found[at] = steps.some(([stride, count]) => {
        const index = Math.floor(at / stride) % count;
        return index === 0 || index === count - 1
          || area[at - stride] !== area[at] || area[at + stride] !== area[at];
      }) ? area[at] : 0;
    }
    return found;
  }

  function labelColours(mode) {
    const shown = [null, ...LABEL_COLOURS[mode]];
    const channel = (index) => shown.map((colour) => (colour ? colour[index] : 0));
    return {
      R: channel(0), G: channel(1), B: channel(2), A: shown.map((colour) => (colour ? 255 : 0)),
      I: shown.map((_, index) => index), labels: shown.map(() => ""),
    };
  }

  // Drawing in 3-D is slow where there is no graphics card: everything is set before one drawing.
  async function show(content, display, isWanted) {
    const nv = await start();
    const image = await niivue.NVImage.loadFromBase64({
      base64: content.image, name: "image.nii.gz", colormap: "gray",
    });
    const labels = await niivue.NVImage.loadFromBase64({ base64: content.labels, name: "labels.nii.gz" });
    if (!isWanted()) return;
    const area = new Uint8Array(labels.img);
    current = { image, labels, area, outline: null, masks: display.masks, slices: content.slices, block: content.block };
    nv.volumes = [image];
    nv.scene.crosshairPos = nv.mm2frac(content.focus);
    style(display);
    nv.addVolume(labels);
    nv.createOnLocationChange();
  }

  function style({ view, cut, masks, drawn, opacity, low, high }) {
    current.image.cal_min = low;
    current.image.cal_max = high;
    current.masks = masks;
    if (drawn === "outline") current.outline ??= outlineOf(current.area, current.labels.hdr.dims);
    current.labels.img = drawn === "outline" ? current.outline : current.area;
    current.labels.opacity = { fill: opacity, outline: 1, hidden: 0 }[drawn];
    current.labels.setColormapLabel(labelColours(masks));
    viewer.opts.sliceType = {
      all: viewer.sliceTypeMultiplanar, axial: viewer.sliceTypeAxial, coronal: viewer.sliceTypeCoronal,
      sagittal: viewer.sliceTypeSagittal, render: viewer.sliceTypeRender,
    }[view];
    if (cut !== isCut) viewer.setClipPlane(cut ? FRONT_CUT : NO_CUT);
    isCut = cut;
    fillLegend(masks);
  }

  function restyle(display) {
    style(display);
    viewer.updateGLVolume();
  }

  function fillLegend(masks) {
    element("legend").replaceChildren(...LEGENDS[masks].map(([colour, words]) => {
      const entry = qcTable.make("li");
      const patch = qcTable.make("i");
      patch.style.background = `rgb(${COLOURS[colour].join(",")})`;
      entry.append(patch, words);
      return entry;
    }));
  }

  const moveSlice = (by) => viewer.moveCrosshairInVox(0, 0, by);

  return { show, restyle, moveSlice, state: () => ({ viewer, current }) };
})();

const qcCaseView = (() => {
  const { element, make, figure } = qcTable;
  const dialog = element("case");
  const GREY_LEVELS = 255;
  let open = null;

  const chosenMasks = () => document.querySelector('input[name="compare"]:checked').value;
  const drawn = () => document.querySelector('input[name="drawn"]:checked').value;
  const hasReference = (series) => series.dice !== null;
  const isGuess = (series) => series.status === "fallback";

  // Sliders fire faster than a large volume is redrawn: one redraw a frame.
  function oncePerFrame(action) {
    let asked = false;
    return () => {
      if (asked) return;
      asked = true;
      requestAnimationFrame(() => { asked = false; action(); });
    };
  }

  function intensity(slider) {
    const [low, high] = open.content.greyRange;
    return low + ((high - low) * Number(element(slider).value)) / GREY_LEVELS;
  }

  function sliderPlace(value) {
    const [low, high] = open.content.greyRange;
    return Math.round((GREY_LEVELS * (value - low)) / (high - low));
  }

  function tellSliders() {
    element("opacity-value").textContent = `${element("opacity").value} %`;
    element("low-value").textContent = shortNumber(intensity("low"));
    element("high-value").textContent = shortNumber(intensity("high"));
  }

  function display() {
    return {
      view: element("view").value,
      cut: element("cut").checked,
      masks: hasReference(open.series) ? chosenMasks() : isGuess(open.series) ? "guess" : "prediction",
      drawn: drawn(),
      opacity: Number(element("opacity").value) / 100,
      low: intensity("low"),
      high: intensity("high"),
    };
  }

  const restyle = oncePerFrame(() => {
    if (open && open.isReady) qcVolumes.restyle(display());
  });

  function moveWindow(moved) {
    const [low, high] = [Number(element("low").value), Number(element("high").value)];
    // Black stays below white: the other slider gives way.
    if (low >= high) {
      if (moved === "low") element("high").value = Math.min(low + 1, GREY_LEVELS);
      else element("low").value = Math.max(high - 1, 0);
    }
    tellSliders();
    restyle();
  }

  function resetWindow() {
    element("low").value = sliderPlace(open.content.window[0]);
    element("high").value = sliderPlace(open.content.window[1]);
    tellSliders();
  }

  function resetDisplay() {
    element("opacity").value = 45;
    element("view").value = "all";
    element("cut").checked = true;
    draw("fill");
    document.querySelector('input[name="compare"][value="both"]').checked = true;
    resetWindow();
    restyle();
  }

  function draw(as) {
    document.querySelector(`input[name="drawn"][value="${as}"]`).checked = true;
    restyle();
  }

  // Each key goes back to what was shown before it.
  let shownBefore = "fill";
  function toggle(as) {
    const now = drawn();
    if (now !== "hidden") shownBefore = now;
    if (as === "hidden") draw(now === "hidden" ? shownBefore : "hidden");
    else draw(now === as ? "fill" : as);
  }

  function say(message, alone) {
    element("stage-message").textContent = message;
    element("stage-message").classList.toggle("alone", alone);
  }

  function showNothing() {
    element("viewer").hidden = true;
    element("preview").hidden = true;
    element("controls").hidden = true;
    element("location").textContent = "";
  }

  async function showVolumes(content, isWanted) {
    open.content = content;
    element("viewer").hidden = false;
    element("controls").hidden = false;
    element("compare").hidden = !hasReference(open.series);
    // Intensities differ between series; what else was chosen stays.
    resetWindow();
    await qcVolumes.show(content, display(), isWanted);
    if (!isWanted()) return;
    open.isReady = true;
    say(isGuess(open.series) ? open.series.view_note : "", false);
  }

  function showPreview(content) {
    element("preview").src = content.preview;
    element("preview").alt = `Slices of ${open.series.case} ${open.series.sequence} with the mask's outline`;
    element("preview").hidden = false;
    say(open.series.problem || open.series.view_note, false);
  }

  async function showStage(series) {
    const isWanted = () => open !== null && open.series === series;
    showNothing();
    if (series.shown === "nothing") {
      say(series.problem || series.error || series.view_note || "There is nothing to show.", true);
      return;
    }
    say("Loading ...", true);
    try {
      const content = await qcCases.load(series.id);
      if (!isWanted()) return;
      if (content.preview) showPreview(content);
      else await showVolumes(content, isWanted);
    } catch (error) {
      if (!isWanted()) return;
      showNothing();
      say(error.message, true);
    }
  }

  function estimate({ estimated_dice: dice, estimated_dice_interval: interval }) {
    if (dice === null) return null;
    return `${figure(dice, 2)} (90 % interval ${interval.map((end) => figure(end, 2)).join(" to ")})`;
  }

  function components(count) {
    if (count === null) return null;
    return count > 1 ? `${count} found by the network, 1 kept` : String(count);
  }

  function facts(series) {
    const stages = Object.entries(series.stages).map(([name, seconds]) => `${name} ${seconds.toFixed(1)}`);
    const all = [
      ["Vendor", series.vendor],
      ["Sequence", series.sequence_reason && `${series.sequence}: ${series.sequence_reason}`],
      ["Liver", series.liver_volume_ml === null ? null
        : `${figure(series.liver_volume_ml, 0)} ml${isGuess(series) ? " (a guess, not a measurement)" : ""}`],
      ["Estimated Dice", estimate(series)],
      ["Mean probability", figure(series.mean_foreground_confidence, 3)],
      ["Components", components(series.components)],
      ["Dice", figure(series.dice, 4)],
      ["Hausdorff", series.hausdorff_mm === null ? null : `${figure(series.hausdorff_mm, 1)} mm`],
      ["Seconds", series.seconds === null ? null : `${figure(series.seconds, 1)} (${stages.join(", ")})`],
      ["Image", series.geometry],
      ["Input", series.input_path],
      ["Mask", series.output_path],
      ["DICOM-SEG", series.dicom_seg_path],
    ];
    const list = make("dl");
    for (const [name, value] of all) {
      if (value) list.append(make("dt", "", name), make("dd", "", value));
    }
    return list;
  }

  function fillFindings(series) {
    const parts = [];
    for (const text of new Set([series.problem, series.error].filter(Boolean))) parts.push(make("p", "error-message", text));
    if (series.warnings.length) {
      const list = make("ul");
      for (const warning of series.warnings) list.append(make("li", "", warning));
      parts.push(make("h3", "", "Warnings"), list);
    }
    if (series.score_note) parts.push(make("h3", "", "Reference"), make("p", "", series.score_note));
    parts.push(make("h3", "", "Figures"), facts(series));
    if (series.view_note) parts.push(make("p", "small", series.view_note));
    element("findings").replaceChildren(...parts);
  }

  function show(series) {
    open = { series, content: null, isReady: false };
    element("case-title").textContent = `${series.case} \u00b7 ${series.sequence}`;
    element("case-status").replaceWith(Object.assign(qcTable.statusBadge(series), { id: "case-status" }));
    const order = qcTable.shown();
    const place = order.indexOf(series);
    element("case-place").textContent = place < 0 ? "" : `${place + 1} of ${order.length}`;
    element("case-previous").disabled = place <= 0;
    element("case-next").disabled = place < 0 || place === order.length - 1;
    fillFindings(series);
    if (!dialog.open) dialog.showModal();
    showStage(series);
  }

  function step(by) {
    const order = qcTable.shown();
    const next = order[order.indexOf(open.series) + by];
    // Replaced, so that "back" leads to the table and not through every case.
    if (next) { history.replaceState(null, "", `#series-${next.id}`); show(next); }
  }

  function followAddress() {
    const series = qcTable.byId.get(location.hash.replace("#series-", ""));
    if (series) show(series);
    else if (dialog.open) dialog.close();
  }

  function onClosed() {
    const { id } = open.series;
    open = null;
    if (location.hash) history.pushState(null, "", location.pathname + location.search);
    qcTable.focus(id);
  }

  const KEYS = {
    ArrowLeft: () => step(-1),
    ArrowRight: () => step(1),
    ArrowUp: () => open.isReady && qcVolumes.moveSlice(1),
    ArrowDown: () => open.isReady && qcVolumes.moveSlice(-1),
    m: () => toggle("hidden"),
    o: () => toggle("outline"),
  };

  // Caught on the way down, before the viewer takes the arrows.
  function onKey(event) {
    const act = KEYS[event.key.length === 1 ? event.key.toLowerCase() : event.key];
    const takesArrows = event.key.startsWith("Arrow") && event.target.matches("input, select");
    if (!act || takesArrows || event.altKey || event.ctrlKey || event.metaKey) return;
    act();
    event.preventDefault();
    event.stopPropagation();
  }

  element("opacity").addEventListener("input", () => { tellSliders(); restyle(); });
  element("low").addEventListener("input", () => moveWindow("low"));
  element("high").addEventListener("input", () => moveWindow("high"));
  for (const choice of ["view", "cut", "compare"]) element(choice).addEventListener("change", restyle);
  for (const choice of document.querySelectorAll('input[name="drawn"]')) choice.addEventListener("change", restyle);
  element("reset-view").addEventListener("click", resetDisplay);
  element("case-previous").addEventListener("click", () => step(-1));
  element("case-next").addEventListener("click", () => step(1));
  element("case-close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("close", onClosed);
  dialog.addEventListener("keydown", onKey, true);
  window.addEventListener("hashchange", followAddress);
  followAddress();
})();
