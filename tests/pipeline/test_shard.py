"""The shard: what is written is read, whatever is damaged is told, others' parameters are not taken for one's own."""

from __future__ import annotations

import functools
import multiprocessing
import pickle
import subprocess
import sys
import zlib
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_shards import HEIGHT, WIDTH, make_shard, request, smooth_flow, smooth_frames

from pipeline import atomic
from pipeline.codec import PRESETS, codec
from pipeline.errors import InputError
from pipeline.request import check, request_of
from pipeline.shard import ShardAddress, Source, faults, open_shard
from pipeline.shard_index import index_shards
from pipeline.shard_writer import ShardWriter

PROJECT = Path(__file__).resolve().parents[2]


def plainly(path: Path, group: str = "/flow/forward") -> np.ndarray:
    """Flow read by the format's description alone: h5py and Pillow, stream by stream."""
    import io

    from PIL import Image

    with h5py.File(path) as file:
        height, width = int(file.attrs["height"]), int(file.attrs["width"])
        part = file[group]
        start, data, table = part["start"][:], part["jpeg"][:], part["table"][:]
        flows = []
        for i in range(len(start) - 1):
            image = np.array(Image.open(io.BytesIO(data[start[i] : start[i + 1]].tobytes())))
            levels = np.stack([image[:height], image[-height:]])
            assert levels.shape == (2, height, width)
            scale, offset = part["scale"][i][:, None, None], part["offset"][i][:, None, None]
            flows.append(table[levels] * scale + offset)
    return np.array(flows, np.float32).reshape(-1, 2, height, width)


@pytest.mark.parametrize("preset", list(PRESETS))
@pytest.mark.parametrize(("height", "width"), [(1, 1), (17, 3), (HEIGHT, WIDTH), (16, 24)])
def test_flows_are_what_the_format_says_and_near_what_was_written(tmp_path, preset, height, width):
    path = make_shard(tmp_path / "x.h5", preset=preset, height=height, width=width)
    with open_shard(path) as shard:
        read = shard.flows(0, 4)
        assert read.dtype == np.float32
        # Decoders may differ by a level.
        near = np.abs(read - plainly(path)) <= np.diff(shard.table()).max() * shard.scale().max() * 1.01
        assert near.all()
        assert np.abs(read - smooth_flow(4, height, width)).mean() < 0.2


def test_levels_read_through_table_scale_and_offset_are_the_flows(tmp_path):
    with open_shard(make_shard(tmp_path / "x.h5", preset="paper")) as shard:
        levels = shard.levels(1, 4)
        assert levels.dtype == np.uint8
        assert levels.shape == (3, 2, HEIGHT, WIDTH)
        scale, offset = (a[1:4, :, None, None] for a in (shard.scale(), shard.offset()))
        assert np.array_equal(shard.table()[levels] * scale + offset, shard.flows(1, 4))


def test_any_range_is_the_same_as_reading_all(tmp_path):
    with open_shard(
        make_shard(tmp_path / "x.h5", flows=7, directions=("forward", "backward"), frames=True)
    ) as shard:
        for whole, read in (
            (shard.flows(0, 7, "backward"), lambda a, b: shard.flows(a, b, "backward")),
            (shard.levels(0, 7), shard.levels),
            (shard.frames(0, 8), shard.frames),
        ):
            for start in range(7):
                for stop in range(start, 8):
                    assert np.array_equal(read(start, stop), whole[start:stop])


def test_results_go_into_a_given_array(tmp_path):
    with open_shard(make_shard(tmp_path / "x.h5")) as shard:
        out = np.empty((2, 2, HEIGHT, WIDTH), np.float32)
        assert shard.flows(1, 3, out=out) is out
        assert np.array_equal(out, shard.flows(1, 3))
        with pytest.raises(ValueError, match="out"):
            shard.flows(1, 3, out=out[:, :, ::2])


def test_frames_come_back_in_rgb(tmp_path):
    with open_shard(make_shard(tmp_path / "x.h5", frames=True)) as shard:
        assert shard.has_frames
        error = np.abs(shard.frames(0, 5).astype(int) - smooth_frames(5))
        assert error.mean(axis=(0, 1, 2)).max() < 8


@pytest.mark.parametrize(("height", "width"), [(16, 24), (18, 33), (13, 7)])
@pytest.mark.parametrize("compiled", [True, False])
def test_flows_of_fields_with_ranges_of_their_own(tmp_path, monkeypatch, height, width, compiled):
    """Same as NumPy has it, bit for bit, for one range, and for one that the components do not share."""
    coding = codec()
    factors, pans = np.float32([1, 9, 30, 1]), np.float32([[0, 0], [31, -7], [4, 4], [-12, -12]])
    flow = smooth_flow(4, height, width) * factors[:, None, None, None] + pans[..., None, None]
    with ShardWriter(tmp_path / "x.h5", request(), coding) as writer:
        writer.add_flows("forward", coding.quantiser.quantise(flow))
        writer.finish(
            video="a/b",
            source=Source(1, "0" * 64, width, height),
            fps=25.0,
            frames=5,
            width=width,
            height=height,
        )
    with open_shard(tmp_path / "x.h5") as shard:
        assert (shard.scale() > 1).any()
        assert (shard.offset() != 0).any()
        scale, offset = (values[..., None, None] for values in (shard.scale(), shard.offset()))
        expected = shard.table()[shard.levels(0, 4)] * scale + offset
        if not compiled:
            monkeypatch.setattr("pipeline.codec._kernel", lambda name: None)
        assert np.array_equal(shard.flows(0, 4), expected)
        assert np.abs(expected - flow).max() < 0.2 * shard.scale().max() * 20


def test_a_shard_tells_what_it_is(tmp_path):
    with open_shard(make_shard(tmp_path / "x.h5", video="A class/ü 'v'")) as shard:
        assert (shard.video, shard.frame_count, shard.fps) == ("A class/ü 'v'", 5, 25.0)
        assert (shard.width, shard.height, shard.corrupt) == (WIDTH, HEIGHT, "")
        assert (shard.has_frames, shard.directions, shard.flow_count, shard.step()) == (
            False,
            ("forward",),
            4,
            1,
        )
        assert shard.source == Source(1000, "0" * 64, WIDTH, HEIGHT)
        flow = smooth_flow(4)
        assert np.allclose(shard.mean(), flow.mean(axis=(2, 3)), atol=1e-5)
        assert shard.clipped().shape == (4,)


@pytest.mark.parametrize(
    "index",
    [slice(None), slice(1, 3), slice(None, None, 2), slice(-2, None), slice(None, None, -1), slice(3, 1)],
)
def test_a_shard_is_the_sequence_of_its_flows(tmp_path, index):
    with open_shard(make_shard(tmp_path / "x.h5", frames=True)) as shard:
        every = shard.flows(0, 4)
        assert len(shard) == shard.flow_count == 4
        assert np.array_equal(shard.flows(), every)
        assert np.array_equal(shard.flows(2), every[2:])
        assert np.array_equal(shard.levels(), shard.levels(0, 4))
        assert np.array_equal(shard.frames(), shard.frames(0, 5))
        assert np.array_equal(shard[index], every[index])
        assert np.array_equal(shard[-1], every[3])
        assert np.array_equal(np.stack(list(shard)), every)
        for outside in (4, -5):
            with pytest.raises(IndexError, match=f"asked for flow {outside} of 4"):
                shard[outside]
        for wrong in ([1, 2], 1.5, "a"):
            with pytest.raises(TypeError, match="expected an integer or a slice"):
                shard[wrong]  # type: ignore[index]
        with pytest.raises(ValueError, match="expected forward or backward, found 'up'"):
            shard.flows(direction="up")


def test_a_shard_of_backward_flow_alone_is_the_sequence_of_that(tmp_path):
    with open_shard(make_shard(tmp_path / "x.h5", directions=("backward",))) as shard:
        assert (len(shard), shard.flow_counts) == (4, {"backward": 4})
        assert np.array_equal(shard[1:3], shard.flows(1, 3, "backward"))


def test_a_shard_of_frames_alone_is_an_empty_sequence_and_true(tmp_path):
    with open_shard(make_shard(tmp_path / "x.h5", directions=(), frames=True)) as shard:
        assert (len(shard), list(shard), bool(shard), shard.method) == (0, [], True, "")


def test_the_call_of_flow_count_still_answers_and_warns(tmp_path):
    with open_shard(make_shard(tmp_path / "x.h5")) as shard:
        with pytest.warns(DeprecationWarning, match="flow_counts") as warned:
            assert shard.flow_count() == shard.flow_count("forward") == 4
        assert {Path(each.filename).name for each in warned} == {Path(__file__).name}
        with (
            pytest.warns(DeprecationWarning, match="flow_counts"),
            pytest.raises(InputError, match="no backward"),
        ):
            shard.flow_count("backward")


def test_a_shards_repr_shows_what_it_holds(tmp_path):
    with open_shard(make_shard(tmp_path / "x.h5", frames=True)) as shard:
        assert repr(shard) == (
            f"<Shard 'Class/video': 4 forward flows, 5 RGB frames by dis, 33x18, '{tmp_path / 'x.h5'}'>"
        )


def test_a_folder_is_no_shard_to_open(tmp_path):
    with pytest.raises(InputError, match=r"expected a shard, found a folder.*index_shards"):
        open_shard(tmp_path)


def test_a_video_of_one_frame_has_no_flow_and_is_a_shard(tmp_path):
    with open_shard(make_shard(tmp_path / "x.h5", flows=0, frames=True)) as shard:
        assert shard.flow_count == 0
        assert shard.flows(0, 0).shape == (0, 2, HEIGHT, WIDTH)
        assert shard.frames(0, 1).shape == (1, HEIGHT, WIDTH, 3)


@pytest.mark.parametrize(("start", "stop"), [(-1, 2), (0, 5), (3, 2)])
def test_ranges_outside_are_refused(tmp_path, start, stop):
    with open_shard(make_shard(tmp_path / "x.h5")) as shard, pytest.raises(IndexError, match="asked"):
        shard.flows(start, stop)


def test_what_a_shard_lacks_is_told_with_what_to_do(tmp_path):
    with open_shard(make_shard(tmp_path / "x.h5")) as shard:
        with pytest.raises(InputError, match="--direction backward"):
            shard.flows(0, 1, "backward")
        with pytest.raises(InputError, match="--rgb"):
            shard.frames(0, 1)


def test_adding_a_direction_and_frames_keeps_the_streams_that_are_there(tmp_path):
    path = make_shard(tmp_path / "x.h5")
    with open_shard(path) as old:
        before = [bytes(stream) for stream in old.streams(0, 4)]
        make_shard(path, directions=("forward", "backward"), frames=True, keep=old)
    with open_shard(path) as shard:
        assert [bytes(stream) for stream in shard.streams(0, 4)] == before
        assert shard.directions == ("forward", "backward")
        assert shard.has_frames
        assert list(faults(shard)) == []
    whole = make_shard(tmp_path / "y.h5", directions=("forward", "backward"), frames=True)
    assert path.read_bytes() == whole.read_bytes()


def test_same_input_gives_the_same_bytes(tmp_path):
    made = [make_shard(tmp_path / name / "x.h5", frames=True).read_bytes() for name in "ab"]
    assert made[0] == made[1]


# --- requests


def test_the_same_request_is_done_and_a_smaller_one_too(tmp_path):
    path = make_shard(tmp_path / "x.h5", directions=("forward", "backward"), frames=True)
    assert check(path, request(directions=("forward", "backward"), frames=True, frames_quality=90)).done
    assert check(path, request()).done
    assert check(path, request(directions=("backward",))).done
    assert check(path, request(directions=(), frames=True, frames_quality=90)).done


@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        ({"step": 2}, "step: asked 2, the shard has 1"),
        ({"method": "tvl1"}, "method: asked tvl1, the shard has dis"),
        ({"parameters": {"finest": 1, "patch": 8}}, "finest: asked 1, the shard has 2"),
        ({"parameters": {"finest": 2}}, "patch: asked None, the shard has 8.0"),
        ({"quality": 90}, "quality: asked 90, the shard has 75"),
        ({"quantiser": "linear bound=20"}, "quantiser"),
        ({"size": (340, 256)}, "size: asked 340x256, the shard has source"),
        ({"source_bytes": 1001}, "source_bytes: asked 1001, the shard has 1000"),
        ({"every": 2}, "every"),
        ({"start": 0.5}, "start"),
        ({"end": 2.0}, "end: asked 2.0, the shard has None"),
    ],
)
def test_each_difference_is_shown_from_both_sides(tmp_path, changes, shown):
    standing = check(make_shard(tmp_path / "x.h5"), request(**changes))
    assert not standing.done
    assert len(standing.differences) == 1
    assert shown in standing.differences[0]


def test_what_is_missing_is_told_apart_from_what_differs(tmp_path):
    standing = check(make_shard(tmp_path / "x.h5"), request(directions=("forward", "backward"), frames=True))
    assert standing.differences == []
    assert standing.missing == ("frames", "backward")


def test_the_request_survives_the_file(tmp_path):
    asked = request(directions=("forward", "backward"), frames=True, frames_quality=90)
    path = make_shard(tmp_path / "x.h5", directions=("forward", "backward"), frames=True)
    with open_shard(path) as shard:
        assert request_of(shard) == asked


# --- processes


def read_in_child(shard, queue):
    queue.put(zlib.crc32(shard.flows(1, 3).tobytes()))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_an_open_shard_works_in_another_process(tmp_path, method):
    context = multiprocessing.get_context(method)
    with open_shard(make_shard(tmp_path / "x.h5")) as shard:
        expected = zlib.crc32(shard.flows(1, 3).tobytes())
        queue = context.Queue()
        child = context.Process(target=read_in_child, args=(shard, queue))
        child.start()
        assert queue.get(timeout=120) == expected
        child.join()
        assert zlib.crc32(shard.flows(1, 3).tobytes()) == expected


def test_a_closed_or_pickled_shard_reads_on(tmp_path):
    shard = open_shard(make_shard(tmp_path / "x.h5"))
    expected = shard.flows(0, 4)
    shard.close()
    shard.close()
    assert np.array_equal(shard.flows(0, 4), expected)
    assert np.array_equal(pickle.loads(pickle.dumps(shard)).flows(0, 4), expected)
    shard.close()


# --- damage


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    return make_shard(tmp_path_factory.mktemp("whole") / "x.h5", frames=True, flows=3)


def contents(path: Path) -> tuple:
    with open_shard(path) as shard:
        attributes = {name: value for name, value in shard.contents.attributes.items()}
        found = list(faults(shard))
        return attributes, shard.contents.flow["forward"].attributes, shard.levels(0, 3).tobytes(), found


def test_every_flipped_byte_of_the_streams_is_found(whole, tmp_path):
    data = bytearray(whole.read_bytes())
    with open_shard(whole) as shard:
        places = [
            at + offset
            for streams in (shard.part("frames"), shard.part("forward"))
            for at in [streams.begin]
            for offset in range(0, int(streams.start[-1]), 7)
        ]
    damaged = tmp_path / "d.h5"
    for place in places:
        data[place] ^= 0x10
        damaged.write_bytes(data)
        data[place] ^= 0x10
        with open_shard(damaged) as shard:
            assert len(list(faults(shard))) == 1, place


def test_no_flipped_bit_of_a_stream_is_read_as_data(whole, tmp_path):
    """Most flipped bits of a JPEG still decode, to other pixels; so every read compares the CRC-32."""
    data = bytearray(whole.read_bytes())
    with open_shard(whole) as shard:
        layout = {part: shard.part(part) for part in ("frames", "forward")}
    damaged = tmp_path / "d.h5"
    for part, streams in layout.items():
        for bit in range(3, 8 * int(streams.start[-1]), 101):
            index = int(np.searchsorted(streams.start, bit // 8, "right")) - 1
            data[streams.begin + bit // 8] ^= 1 << bit % 8
            damaged.write_bytes(data)
            data[streams.begin + bit // 8] ^= 1 << bit % 8
            with open_shard(damaged) as shard:
                reads = [shard.frames] if part == "frames" else [shard.levels, shard.flows]
                for read in (*reads, functools.partial(shard.streams, part=part)):
                    with pytest.raises(InputError, match=rf"d\.h5: .*{part} {index} fails its checksum"):
                        read(0, len(streams))


@settings(max_examples=300, deadline=None)
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_anywhere_is_an_input_error_a_fault_or_changes_nothing(whole, place, bit):
    data = bytearray(whole.read_bytes())
    data[int(place * len(data))] ^= 1 << bit
    damaged = whole.parent / "damaged.h5"
    damaged.write_bytes(data)
    expected = contents(whole)
    try:
        found = contents(damaged)
    except InputError:
        return
    assert found[3] or found == expected


@settings(max_examples=60, deadline=None)
@given(part=st.floats(0, 1, exclude_max=True))
def test_a_truncated_file_is_an_input_error(whole, part):
    data = whole.read_bytes()
    cut = whole.parent / "cut.h5"
    cut.write_bytes(data[: int(part * len(data))])
    with pytest.raises(InputError, match=r"cut\.h5"):
        open_shard(cut)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda file: file.attrs.modify("version", 2), "version 2"),
        (lambda file: file.attrs.modify("format", np.bytes_(b"something else")), "not a two-stream shard"),
        (lambda file: file.attrs.__delitem__("fps"), "'fps'"),
        (lambda file: file.attrs.modify("width", 10**6), "size of"),
        (lambda file: file.attrs.create("video", "variable", dtype=h5py.string_dtype()), "fixed length"),
        (lambda file: file["flow/forward"].attrs.modify("parameters", np.bytes_(b"[1]")), "JSON"),
        (lambda file: file["flow/forward/scale"].__setitem__((0, 0), 9), "checksum"),
        (lambda file: file["flow/forward"].__delitem__("mean"), "'mean'"),
        (lambda file: [file.__delitem__("flow"), file.__delitem__("rgb")], "neither frames nor flow"),
    ],
)
def test_what_is_no_shard_of_this_version_is_told(tmp_path, change, message):
    path = make_shard(tmp_path / "x.h5", frames=True)
    with h5py.File(path, "r+") as file:
        change(file)
    with pytest.raises(InputError, match=message) as error:
        open_shard(path)
    assert str(path) in str(error.value)


def replace(file: h5py.File, name: str, **how: object) -> None:
    data = file[name][...]
    del file[name]
    file.create_dataset(name, data=data, **how)


@pytest.mark.parametrize("name", ["flow/forward/jpeg", "flow/forward/start", "flow/forward", "flow"])
@pytest.mark.parametrize("kind", ["external", "soft"])
def test_links_are_refused(tmp_path, name, kind):
    other = make_shard(tmp_path / "other.h5")
    path = make_shard(tmp_path / "x.h5")
    with h5py.File(path, "r+") as file:
        file.move(name, "elsewhere")
        file[name] = (
            h5py.ExternalLink(str(other), name) if kind == "external" else h5py.SoftLink("/elsewhere")
        )
    with pytest.raises(InputError, match="link to elsewhere"):
        open_shard(path)


@pytest.mark.parametrize("how", [{"chunks": (64,)}, {"compression": "gzip"}])
def test_streams_stored_in_another_way_are_refused(tmp_path, how):
    path = make_shard(tmp_path / "x.h5")
    with h5py.File(path, "r+") as file:
        replace(file, "flow/forward/jpeg", **how)
    with pytest.raises(InputError, match="contiguously"):
        open_shard(path)


def test_bytes_of_other_files_are_not_read(tmp_path):
    secret = tmp_path / "secret"
    path = make_shard(tmp_path / "x.h5")
    with h5py.File(path, "r+") as file:
        data = file["flow/forward/jpeg"][...]
        secret.write_bytes(data.tobytes())
        del file["flow/forward/jpeg"]
        file.create_dataset("flow/forward/jpeg", data.shape, np.uint8, external=[(str(secret), 0, len(data))])
    with pytest.raises(InputError):
        open_shard(path)


def retabled(path: Path, start: np.ndarray) -> None:
    """Replace the table of starts, with a checksum that agrees."""
    from pipeline.shard_file import FLOW_TABLES, STREAM_TABLES, tables_crc32

    with h5py.File(path, "r+") as file:
        part = file["flow/forward"]
        part["start"][...] = start
        part.attrs.modify(
            "tables_crc32", tables_crc32({n: part[n][...] for n in [*STREAM_TABLES, *FLOW_TABLES]})
        )


@pytest.mark.parametrize("change", [lambda s: s[::-1], lambda s: s + 1, lambda s: s * 10**9, lambda s: s * 0])
def test_starts_that_do_not_ascend_within_the_data_are_refused(tmp_path, change):
    path = make_shard(tmp_path / "x.h5")
    with open_shard(path) as shard:
        start = shard.part("forward").start.copy()
    retabled(path, start)
    open_shard(path).close()
    retabled(path, change(start))
    with pytest.raises(InputError, match="ascend"):
        open_shard(path)


def test_no_file_a_folder_and_no_hdf5_are_input_errors(tmp_path):
    (tmp_path / "text.h5").write_text("no HDF5")
    (tmp_path / "empty.h5").write_bytes(b"")
    (tmp_path / "folder.h5").mkdir()
    for name in ("text.h5", "empty.h5", "folder.h5", "none.h5"):
        with pytest.raises(InputError, match=name):
            open_shard(tmp_path / name)


def test_reading_a_damaged_stream_names_the_file_and_the_stream(tmp_path):
    path = make_shard(tmp_path / "x.h5")
    with open_shard(path) as shard:
        streams = shard.part("forward")
    with path.open("r+b") as file:
        file.seek(streams.begin + int(streams.start[2]))
        file.write(b"\0\0\0\0")
    with open_shard(path) as shard:
        shard.flows(0, 2)
        for read in (shard.flows, shard.levels):
            with pytest.raises(InputError, match="forward 2"):
                read(2, 3)


# --- writing


def test_leaving_without_finish_leaves_nothing(tmp_path):
    path = tmp_path / "sub" / "x.h5"
    coding = codec()

    def fail() -> None:
        with ShardWriter(path, request(), coding) as writer:
            for flow in (smooth_flow(2), smooth_flow(2) * np.float32(np.nan)):
                writer.add_flows("forward", coding.quantiser.quantise(flow))

    with pytest.raises(ValueError, match="not finite"):
        fail()
    with ShardWriter(path, request(), coding) as writer:
        writer.add_flows("forward", coding.quantiser.quantise(smooth_flow(2)))
    assert list(path.parent.iterdir()) == []


def test_a_shard_with_fewer_flows_than_its_frames_give_is_not_written(tmp_path):
    coding = codec()
    with ShardWriter(tmp_path / "x.h5", request(), coding) as writer:
        writer.add_flows("forward", coding.quantiser.quantise(smooth_flow(2)))
        with pytest.raises(InputError, match="2 forward flows of 9 frames"):
            writer.finish(
                video="a/b",
                source=Source(1, "", 4, 4),
                fps=25,
                frames=9,
                width=WIDTH,
                height=HEIGHT,
                device="cpu",
            )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("limit", [1, 3000, 10000, 40000])
def test_a_full_disk_is_told_and_leaves_earlier_shards_as_they_were(tmp_path, limit):
    """A file-size limit stands for the full disk; it fails in the spool or in HDF5, after how much it allows."""
    path = make_shard(tmp_path / "x.h5")
    before = path.read_bytes()
    code = f"""
import sys; sys.path[:0] = [{str(PROJECT)!r}, {str(Path(__file__).parent)!r}]
import resource
from pathlib import Path
from made_shards import make_shard, smooth_flow
from pipeline.codec import codec
codec().quantiser.quantise(smooth_flow(1))  # before the limit, which would stop numba's cache too
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, resource.RLIM_INFINITY))
try:
    make_shard(Path({str(path)!r}), frames=True, flows=60)
except Exception as error:
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    print(type(error).__name__, error)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("InputError"), result.stdout + result.stderr
    assert "no space left" in result.stdout
    assert [file.name for file in tmp_path.iterdir()] == ["x.h5"]
    assert path.read_bytes() == before


def test_two_writers_of_one_shard_leave_one_valid_shard(tmp_path):
    path = tmp_path / "x.h5"
    coding = codec()
    with ShardWriter(path, request(), coding) as first, ShardWriter(path, request(), coding) as second:
        for writer in (first, second):
            writer.add_flows("forward", coding.quantiser.quantise(smooth_flow(3)))
        for writer in (first, second):
            writer.finish(
                video="a/b",
                source=Source(1, "", 4, 4),
                fps=25,
                frames=4,
                width=WIDTH,
                height=HEIGHT,
                device="cpu",
            )
    with open_shard(path) as shard:
        assert list(faults(shard)) == []
    assert [file.name for file in tmp_path.iterdir()] == ["x.h5"]


# --- folders


@pytest.mark.parametrize(
    "stem", ["plain", "a.b", "-dash", "50%", "it's", 'a"b', "a;b#c&d", "[x](y)", "ü 語", ".hidden"]
)
def test_any_name_is_indexed_and_opened(tmp_path, stem):
    make_shard(tmp_path / "Class" / f"{stem}.h5", video=f"Class/{stem}", flows=1)
    index = index_shards(tmp_path)
    assert index == {f"Class/{stem}": ShardAddress(tmp_path / "Class" / f"{stem}.h5")}
    with open_shard(index[f"Class/{stem}"]) as shard:
        assert shard.video == f"Class/{stem}"


def test_temporary_files_are_no_shards(tmp_path):
    atomic.temporary_path(tmp_path / "x.h5").write_bytes(b"")
    assert index_shards(tmp_path) == {}


def test_index_does_not_open_loose_files(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b.h5").write_bytes(b"not a shard")
    assert list(index_shards(tmp_path)) == ["a/b"]


def test_no_descriptor_is_left_open(tmp_path):
    path = make_shard(tmp_path / "x.h5")
    check(path, request())
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(5):
        check(path, request())
        with open_shard(path) as shard:
            shard.flows(0, 1)
        with pytest.raises(InputError):
            open_shard(tmp_path / "none.h5")
    assert len(list(Path("/proc/self/fd").iterdir())) == before
