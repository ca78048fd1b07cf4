"""Captions files: what is read, and every kind of file that is refused, with the line."""

import json

import pytest

from contentv.engine.data.captions import CaptionRow, read_captions


def write(tmp_path, content, name="captions.csv"):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_both_forms_say_the_same(tmp_path):
    table = '\ufefffile,score,caption,begin,end\r\na/b.mp4,3,"waves, and ""wind""",1.5,4\r\nc.mp4,,größe,,\r\n'
    lines = [
        {"file": "a/b.mp4", "caption": 'waves, and "wind"', "begin": 1.5, "end": 4, "score": [1]},
        {"file": "./c.mp4", "caption": " größe ", "begin": None},
    ]
    expected = [
        CaptionRow(file="a/b.mp4", caption='waves, and "wind"', begin=1.5, end=4.0),
        CaptionRow(file="c.mp4", caption="größe"),
    ]
    assert read_captions(write(tmp_path, table)) == expected
    text = "\n\n".join(json.dumps(line, ensure_ascii=False) for line in lines)
    assert read_captions(write(tmp_path, text, "captions.jsonl")) == expected


def test_captions_may_hold_what_some_take_for_line_ends(tmp_path):
    strange = "one\u2028two\x85three\x0bfour"
    path = write(tmp_path, json.dumps({"file": "a.mp4", "caption": strange}, ensure_ascii=False), "captions.jsonl")
    assert read_captions(path)[0].caption == strange
    assert read_captions(write(tmp_path, f'file,caption\na.mp4,"{strange}\nfive"\n'))[0].caption == f"{strange}\nfive"


def test_a_row_without_its_caption_is_kept_for_the_report(tmp_path):
    assert read_captions(write(tmp_path, "file,caption\na.mp4,\nb.mp4\n")) == [
        CaptionRow(file="a.mp4", caption=""),
        CaptionRow(file="b.mp4", caption=""),
    ]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "line 1: the columns are none; expected file and caption"),
        (b"file,caption\n", "no row was found"),
        (b"path,text\na,b\n", "line 1: the columns are path, text; expected file and caption"),
        (b"file,file,caption\na,b,c\n", "once each"),
        (b"file,caption\na.mp4,x\nb.mp4,y,z\n", "line 3: more values than columns; put a caption with commas"),
        (b'file,caption\na.mp4,"x\n', "correct the quotes"),
        ("file,caption\na.mp4,größe\n".encode("latin1"), "line 2: byte 0xf6 is no UTF-8; save the file as UTF-8"),
        ("file,caption\na.mp4,x\n".encode("utf-16"), "is no UTF-8"),
        (b"file,caption\na.mp4,x\0\n", "line 2: a zero byte"),
        (b"file,caption\n/etc/a.mp4,x\n", "line 2: file is '/etc/a.mp4'; it must be a path below the video folder"),
        (b"file,caption\n../a.mp4,x\n", "must be a path below"),
        (b"file,caption\n,x\n", "must be a path below"),
        (b"file,caption,begin\na.mp4,x,soon\n", "line 2: begin is 'soon'; it must be a number of seconds, 0 or more"),
        (b"file,caption,end\na.mp4,x,inf\n", "end is 'inf'"),
        (b"file,caption,begin,end\na.mp4,x,3,3\n", "ends at 3.0 s and begins at 3.0 s; it must end later"),
        (b"file,caption\na.mp4,x\na.mp4,y\n", "a.mp4 stands in"),
        (b"file,caption\n" + b"a" * 200_000 + b",x\n", "field larger than"),
    ],
)
def test_tables_that_are_refused(tmp_path, content, words):
    path = write(tmp_path, content)
    with pytest.raises(ValueError, match="captions.csv") as refusal:
        read_captions(path)
    assert words in str(refusal.value)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "line 2: not JSON"),
        ("[1]", "line 2: found list; expected an object"),
        ('{"file": 3, "caption": "x"}', "file is 3; it must be a text"),
        ('{"file": "b.mp4", "caption": ["x"]}', "caption is ['x']; it must be a text"),
        ('{"file": "b.mp4", "caption": "\\ud800"}', "caption holds half a character"),
        ('{"file": "b.mp4", "caption": "x", "begin": true}', "begin is True"),
        ('{"file": "b.mp4", "caption": "x", "begin": NaN}', "begin is nan"),
        ('{"file": "b.mp4", "caption": "x", "end": 1e999}', "end is inf"),
        ("[" * 100_000, "line 2: not JSON"),
        ('{"file": "b\\u0000.mp4", "caption": "x"}', "must be a path below"),
    ],
)
def test_lines_that_are_refused(tmp_path, line, words):
    path = write(tmp_path, '{"file": "a.mp4", "caption": "x"}\n' + line, "captions.jsonl")
    with pytest.raises(ValueError, match="captions.jsonl") as refusal:
        read_captions(path)
    assert words in str(refusal.value)


def test_other_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"captions come as \.csv or \.jsonl"):
        read_captions(write(tmp_path, "x", "captions.txt"))
    with pytest.raises(ValueError, match="is no file"):
        read_captions(tmp_path / "absent.csv")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(ValueError, match="is no file"):
        read_captions(tmp_path / "folder.csv")
