import pytest

from sslmedsam2.contract.info_csv import read_info
from sslmedsam2.contract.studies import find_studies


@pytest.fixture
def table(tmp_path):
    def write(content, encoding="utf-8"):
        path = tmp_path / "info.csv"
        path.write_bytes(content.encode(encoding))
        return path

    return write


def facts(path):
    return [(f.case, f.vendor, f.missing and sorted(f.missing)) for f in read_info(path)]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "latin-1"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_encodings_and_line_ends(table, encoding, end):
    path = table(f"Case,Vendor,Missing Modality{end}0001-A,A,T1{end}M\u00fcller,B1,{end}", encoding)

    assert facts(path) == [("0001-A", "A", ["T1"]), ("M\u00fcller", "B1", frozenset())]


@pytest.mark.parametrize(
    "missing",
    ['"T1,DWI_800"', "T1;DWI", "T1/DWI_800", "T1 DWI", "T1 & DWI_800", "[T1|DWI]", "T1,DWI"],
)
def test_any_separator_of_missing_sequences(table, missing):
    assert facts(table(f"Case,Vendor,Missing Modality\nx,A,{missing}\n")) == [
        ("x", "A", ["DWI_800", "T1"])
    ]


def test_semicolons_other_orders_and_spellings(table):
    path = table("missing_modality;VENDOR;case\nGED-1;Vendor_B2;0002-B2\n\n;;\n")

    assert facts(path) == [("0002-B2", "B2", ["GED1"])]


def test_absent_columns_say_nothing(table):
    assert facts(table("Case\n0001-A\n")) == [("0001-A", None, None)]


@pytest.mark.parametrize("content", ["", "Name,Vendor\nx,A\n"])
def test_a_table_without_cases_is_refused(table, content):
    with pytest.raises(ValueError, match="Case"):
        read_info(table(content))


def test_disagreements_are_noted_and_the_files_win(tmp_path):
    for name in ("0001-A/GED4", "0001-A/T1", "0003-A/GED4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.nii.gz").touch()
    (tmp_path / "info.csv").write_text(
        "Case,Vendor,Missing Modality\n0001-A,B1,T1 T2 DWI GED1 GED2\n0002-A,A,\n"
    )

    discovery = find_studies(tmp_path)

    assert [series.case for series in discovery.series] == ["0001-A", "0001-A", "0003-A"]
    assert {series.vendor for series in discovery.series} == {"A"}
    assert discovery.problems == ()
    notes = "\n".join(discovery.notes)
    assert "0001-A: the table says vendor B1, the folder A" in notes
    assert "said to be missing and found: T1" in notes
    assert "not said to be missing and not found: GED3" in notes
    assert "0002-A: is in the table and has no usable folder" in notes
    assert "0003-A: is not in the table" in notes


def test_an_unusable_table_is_noted_only(tmp_path):
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "GED4.nii.gz").touch()
    (tmp_path / "info.csv").write_text("nonsense")

    discovery = find_studies(tmp_path)

    assert len(discovery.series) == 1
    assert discovery.problems == ()
    assert "not used" in discovery.notes[0]
