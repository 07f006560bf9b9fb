#!/usr/bin/env bash
# From a fresh clone to liver masks: makes the environment, segments the studies in test_inputs/
# with the shipped weights, compares the masks with their references and writes the results page.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup.sh --user

readonly OUTPUT=out/demo
rm -rf $OUTPUT

printf '\n== Segmenting test_inputs/images\n'
.venv/bin/python entrypoint.py predict --input test_inputs/images --output $OUTPUT

printf '\n== Comparing the masks with test_inputs/references\n'
.venv/bin/python entrypoint.py evaluate --predictions $OUTPUT --references test_inputs/references \
    >$OUTPUT/scores.txt
# The table of cases; the means by sequence and vendor are in the file.
sed '/^$/q' $OUTPUT/scores.txt

printf '\n== Writing the results page\n'
.venv/bin/python entrypoint.py report --run $OUTPUT --input test_inputs/images \
    --references test_inputs/references

cat <<TEXT

== Done
   masks      $OUTPUT/LiSeg_pred/<case>/<sequence>_pred.nii.gz
   volumes    $OUTPUT/liver_volumes.csv
   scores     $OUTPUT/scores.txt: each mask, and means by sequence and vendor
   record     $OUTPUT/run_report.json
   previews   $OUTPUT/previews/
   page       $PWD/$OUTPUT/report/index.html

   Open the page in a browser. It needs no network and no server.
   Your own scans:  .venv/bin/python entrypoint.py predict --report --input FOLDER --output FOLDER
TEXT
