import json

import pytest

from data_pipeline.captions import CaptionRow, read_captions
from data_pipeline.errors import DataError

ROWS = [CaptionRow("a.mp4", "a cat, asleep", "g1"), CaptionRow("b/ü.mp4", 'says "no"', ""), CaptionRow("a.mp4", "", "")]


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def test_csv_and_json_give_the_same_rows(tmp_path):
    csv_text = '\ufeffvideo,caption,group,note\r\na.mp4,"a cat, asleep",g1,x\r\nb/ü.mp4,"says ""no""",,\r\na.mp4,,,\r\n'
    objects = [{"video": row.video, "caption": row.caption, "group": row.group} for row in ROWS]
    assert read_captions(write(tmp_path / "c.csv", csv_text)) == ROWS
    assert read_captions(write(tmp_path / "c.json", json.dumps(objects))) == ROWS


def test_group_column_is_optional(tmp_path):
    assert read_captions(write(tmp_path / "c.csv", "caption,video\nhi,a.mp4\n")) == [CaptionRow("a.mp4", "hi", "")]
    assert read_captions(write(tmp_path / "c.json", '[{"video": "a.mp4", "caption": "hi"}]'))[0].group == ""


def test_json_row_without_a_caption_is_kept_with_an_empty_one(tmp_path):
    path = write(
        tmp_path / "c.json", '[{"video": "a", "caption": "x"}, {"video": "b"}, {"video": "c", "caption": null}]'
    )
    assert [row.caption for row in read_captions(path)] == ["x", "", ""]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("c.txt", "", "neither .csv nor .json"),
        ("c.csv", "", "lacks the column video and caption"),
        ("c.csv", "file,caption\na,b\n", "lacks the column video .*found: caption, file"),
        ("c.csv", "video,caption\n", "no rows"),
        ("c.csv", "video,caption\na.mp4,a cat, asleep\n", "line 2 .*more cells"),
        ("c.csv", 'video,caption\na.mp4,"two\nlines"\nb.mp4,c, d\n', "line 4 .*more cells"),
        (
            "c.csv",
            'video,caption\na.mp4,ok\nb.mp4,"unclosed\nc.mp4,x\nd.mp4,y\n',
            "line 3: the quote before 'unclosed' is not closed",
        ),
        ("c.csv", 'video,caption\n\n\nb.mp4,"unclosed\nc.mp4,x\n', "line 4: the quote before 'unclosed'"),
        ("c.csv", 'video,caption\n"a\n.mp4","unclosed\nc.mp4,x\n', "line 3: the quote before 'unclosed'"),
        ("c.csv", 'video,caption\na.mp4,"unclosed\nb.mp4,x\nc.mp4,"y"\n', "line 2: the quote before 'unclosed'"),
        ("c.csv", 'video,caption\na.mp4,"unclosed\n' + "b.mp4,x\n" * 20_000, "line 2: the quote before 'unclosed'"),
        ("c.csv", "video,caption\n\n\nb.mp4,c, d\n", "line 4 .*more cells"),
        ("c.csv", 'video,caption\na.mp4,"x"y\n', "line 2: "),
        ("c.csv", "video,caption,start\na.mp4,x,soon\n", "row 1 .*start must be seconds"),
        ("c.json", '[{"video": "a", "caption": "x", "end": -1}]', "row 1 .*end must be seconds"),
        ("c.csv", "video,question\na.mp4,x\n", "lacks the column caption"),
        ("c.json", "[{", "bad JSON"),
        ("c.json", "[]", "no rows"),
        ("c.json", '[{"video": "a", "caption": "x", "start": ' + "1" * 5000 + "}]", "bad JSON .*digits"),
        (
            "c.json",
            r'[{"video": "a", "caption": "x\ud800"}]',
            r"row 1 .*caption has half of a surrogate pair: 'x\\ud800'",
        ),
        ("c.json", '{"video": "a"}', "list of objects"),
        ("c.json", '[{"video": "a"}]', "lacks the column caption"),
        ("c.json", '[{"video": "a", "caption": 3}]', "row 1 .*caption must be text, not 3"),
    ],
)
def test_bad_caption_file_is_a_one_line_error(tmp_path, name, text, message):
    with pytest.raises(DataError, match=message) as error:
        read_captions(write(tmp_path / name, text))
    assert "\n" not in str(error.value)


def test_missing_or_binary_caption_file_is_an_error(tmp_path):
    with pytest.raises(DataError, match="no caption file"):
        read_captions(tmp_path / "c.csv")
    (tmp_path / "c.csv").write_bytes(b"video,caption\n\xff\xfe,x\n")
    with pytest.raises(DataError, match="not UTF-8"):
        read_captions(tmp_path / "c.csv")


@pytest.mark.parametrize("name", ["c.csv", "c.json"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_text_that_is_not_utf8_is_named_by_line_and_byte(tmp_path, name, mark):
    lines = [
        b"video,caption",
        *(b"%d.mp4,\xc3\xa9t\xc3\xa9" % index for index in range(5000)),
        b"x.mp4,caf\xe9",
        b"y,z",
    ]
    data = mark + b"\n".join(lines)
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=rf"not UTF-8 text: line 5002, byte {data.index(b'caf') + 3} \(0xe9\)"):
        read_captions(tmp_path / name)


@pytest.mark.parametrize("name", ["c.csv", "c.json"])
@pytest.mark.parametrize(
    ("data", "place"),
    [
        (b"video,caption\na,b\nc,x\x00y\n", r"line 3, byte 21 \(0x00\)"),
        ("video,caption\na,b\n".encode("utf-16-le"), r"line 1, byte 1 \(0x00\)"),
        ("video,caption\na,b\n".encode("utf-16"), r"line 1, byte 0 \(0xff\)"),
        (b"video,caption\ra,b\rc,\xe9\r", r"line 3, byte 20 \(0xe9\)"),
    ],
    ids=["NUL", "UTF-16 without a mark", "UTF-16", "lines that end in CR"],
)
def test_other_encodings_are_named_by_line_and_byte(tmp_path, name, data, place):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=rf"not UTF-8 text: {place}; save it as UTF-8"):
        read_captions(tmp_path / name)


def test_blank_lines_and_line_breaks_in_quotes_are_read(tmp_path):
    rows = read_captions(write(tmp_path / "c.csv", '\n\nvideo,caption\r\n\r\na.mp4,"two\nlines"\n\nb.mp4\n'))
    assert [(row.video, row.caption, row.number) for row in rows] == [("a.mp4", "two\nlines", 1), ("b.mp4", "", 2)]


def test_lists_of_captions_and_answers_become_rows(tmp_path):
    text = json.dumps([{"video": "a", "caption": ["x", "y"]}, {"video": "a", "question": "q", "answer": ["1", "2"]}])
    rows = read_captions(write(tmp_path / "c.json", text))
    assert [(row.caption, row.question, row.answer, row.number) for row in rows] == [
        ("x", "", "", 1), ("y", "", "", 1), ("", "q", "1", 2), ("", "q", "2", 2)
    ]  # fmt: skip


def test_segment_columns_are_seconds(tmp_path):
    (row, other) = read_captions(write(tmp_path / "c.csv", "video,caption,start,end\na,x,1.5,30\na,y,,\n"))
    assert (row.start, row.end, other.start, other.end) == (1.5, 30.0, None, None)
