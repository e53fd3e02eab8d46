"""L4: the model of Triton's Python backend with a fake engine: ends, limits, metrics, logs."""

from __future__ import annotations

import errno
import io
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from otter_export.errors import EngineError
from otter_export.serving.settings import Settings
from tests.runtime.fake_engine import FakeEngine, make_manifest
from tests.serving.answers import LONG, endless, error, outputs
from tests.serving.backend import InferenceRequest, InferenceResponse, TritonError
from tests.serving.conftest import Serve, arguments, arrays


def test_a_client_that_is_gone_frees_its_place(serve: Serve) -> None:
    served = serve(endless(), max_batch_size=1)
    first = served.ask(text_input="a", max_tokens=LONG, stream=True, method="plain")
    second = served.ask(text_input="b", max_tokens=2)
    while not first.sent:
        time.sleep(0.001)
    first.cancelled = True
    assert error(first.wait()).code() == TritonError.CANCELLED
    assert len(first.sent) < LONG
    assert len(outputs(second.wait()[0])["token_id"]) == 2


def test_a_waiting_request_can_be_cancelled(serve: Serve) -> None:
    served = serve(endless(), max_batch_size=1)
    running = served.ask(text_input="a", max_tokens=LONG, stream=True, method="plain")
    waiting = [served.ask(text_input="b", max_tokens=2) for _ in range(40)]
    for sender in waiting:
        sender.cancelled = True
    for sender in waiting:
        assert error(sender.wait()).code() == TritonError.CANCELLED
    running.cancelled = True
    running.wait()


def test_one_more_than_the_queue_holds_is_refused_at_once(serve: Serve) -> None:
    served = serve(endless(), max_batch_size=1, max_queue=2)
    running = served.ask(text_input="a", max_tokens=LONG, stream=True, method="plain")
    while not running.sent:
        time.sleep(0.001)
    waiting = [served.ask(text_input="b", max_tokens=1) for _ in range(2)]
    refused = error(served.ask(text_input="c", max_tokens=1).sent)
    assert refused.code() == TritonError.UNAVAILABLE
    assert "2 requests wait already" in refused.message()
    running.cancelled = True
    assert all(len(outputs(w.wait()[0])["token_id"]) == 1 for w in waiting)


@pytest.mark.parametrize("how", ["input", "timeout", "setting"])
def test_deadlines_end_a_request(serve: Serve, how: str) -> None:
    served = serve(endless(), default_deadline_ms=40 if how == "setting" else 0)
    options: dict[str, Any] = {"input": {"deadline_ms": 40}, "timeout": {"microseconds": 40_000}}
    sender = served.ask(
        text_input="a", max_tokens=LONG, stream=True, method="plain", **options.get(how, {})
    )
    expired = error(sender.wait())
    assert expired.code() == TritonError.UNAVAILABLE
    assert "seconds were over" in expired.message()


def test_a_mistake_is_one_error_and_harms_nobody(serve: Serve) -> None:
    served = serve()
    fine = served.ask(text_input="abc", max_tokens=20)
    wrong = [
        served.ask(),
        served.ask(text_input="abc", signal="kindness"),
        served.ask(text_input="abc", top_k=65),
        served.ask(text_input="abc" * 200),
        served.ask(input_ids=[300]),
    ]
    for sender in wrong:
        (only,) = sender.wait()
        assert error([only]).code() == TritonError.INVALID_ARG
        assert "\n" not in error([only]).message()
    assert outputs(fine.wait()[0])["token_id"]


def test_a_broken_request_object_does_not_end_the_call(serve: Serve) -> None:
    served = serve()

    class Broken(InferenceRequest):
        def parameters(self) -> str:
            return "{not json"

    broken = Broken({})
    fine = InferenceRequest({"text_input": np.array([[b"abc"]], object)})
    served.model.execute([broken, fine])
    assert error(broken.sender.wait()).code() == TritonError.INTERNAL
    assert outputs(fine.sender.wait()[0])["token_id"]


class Panic(BaseException):
    """As tokenizers' ``PanicException``: no Exception."""


def test_nothing_leaves_the_call(serve: Serve, capsys: pytest.CaptureFixture[str]) -> None:
    """Neither a panic in the tokenizer nor a request without a way back; the others are served."""
    served = serve()

    class NoWayBack(InferenceRequest):
        def get_response_sender(self) -> Any:
            raise RuntimeError("it is gone")

    class Panicking(InferenceRequest):
        def timeout(self) -> int:
            raise Panic(str(self.tensors))

    lost, panicking = NoWayBack({}), Panicking(arrays({"text_input": "a secret"}), "r1")
    fine = InferenceRequest(arrays({"text_input": "abc", "max_tokens": 3}))
    served.model.execute([lost, panicking, fine])
    failed = error(panicking.sender.wait())
    assert (failed.code(), failed.message()) == (
        TritonError.INTERNAL,
        "internal error (Panic); see the server's log",
    )
    assert outputs(fine.sender.wait()[0])["token_id"]
    served.model.finalize()
    log = capsys.readouterr().err
    assert "secret" not in log
    lines = [json.loads(line) for line in log.splitlines()]
    kinds = [line["error"].rpartition("\n")[2] for line in lines if line["event"] == "failed"]
    assert kinds == ["RuntimeError", "Panic"]


def test_a_log_that_nobody_takes_ends_no_request(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = serve()

    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(errno.ENOSPC, "no space left on device")

    closed = io.StringIO()
    closed.close()
    for stream in (Full(), closed):
        monkeypatch.setattr(sys, "stderr", stream)
        assert error(served.ask(text_input="a", top_k=0).wait()).code() == TritonError.INVALID_ARG
        assert outputs(served.ask(text_input="abc", max_tokens=3).wait()[0])["token_id"]


def test_a_name_of_megabytes_is_not_repeated(
    serve: Serve, capsys: pytest.CaptureFixture[str]
) -> None:
    served = serve()
    long = "s" * 10_000_000
    refused = error(served.ask(name="r" * 100_000, text_input="a", signal=long).wait())
    assert len(refused.message()) < 600
    served.model.finalize()
    assert max(map(len, capsys.readouterr().err.splitlines())) < 5000


def test_no_path_of_the_server_is_in_an_answer(
    serve: Serve, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = Path("repository") / "otter" / "1" / "engine"
    paths = (str(directory), str(directory.resolve()), "/srv/models/otter/1")

    class Failing(FakeEngine):
        def forward(self, *arguments: Any) -> Any:
            raise EngineError(" and ".join(f"{path}/model.onnx is damaged" for path in paths))

    served = serve(Failing(make_manifest()))
    heard = error(served.ask(text_input="abc").wait()).message()
    assert heard == " and ".join(["model.onnx is damaged"] * len(paths))
    served.model.finalize()
    assert all(json.dumps(path)[1:-1] in capsys.readouterr().err for path in paths[2:])


def test_an_answer_that_cannot_be_made_ends_its_request(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a surrogate pair has no bytes in UTF-8; a client that waited for it would for ever."""
    served = serve()
    monkeypatch.setattr(served.engine.tokenizer, "decode", lambda ids, **_: "\ud800" * len(ids))
    failed = error(served.ask(text_input="abc", max_tokens=3).wait())
    assert failed.code() == TritonError.INTERNAL
    assert "could not be sent (UnicodeEncodeError)" in failed.message()


def test_an_engine_that_fails_ends_requests_with_its_error(serve: Serve) -> None:
    class Failing(FakeEngine):
        def forward(self, *arguments: Any) -> Any:
            raise EngineError("the engine returned logits that are NaN")

    served = serve(Failing(make_manifest()))
    failed = error(served.ask(text_input="abc").wait())
    assert (failed.code(), failed.message()) == (
        TritonError.INTERNAL,
        "the engine returned logits that are NaN",
    )


def test_metrics_add_up(serve: Serve) -> None:
    served = serve()
    rewards: list[float] = []
    for i in range(3):
        whole = outputs(served.ask(text_input=f"p{i}", max_tokens=5, method="plain").wait()[0])
        rewards += whole["reward"]
    served.ask(text_input="a", top_k=0)
    served.model.finalize()
    assert served.metric("otter_requests_total", outcome="completed") == 3
    assert served.metric("otter_rejected_total", reason="invalid") == 1
    assert served.metric("otter_tokens_total") == len(rewards)
    assert served.metric("otter_prompt_tokens_total") == 6
    assert served.metric("otter_candidates_total") == len(rewards)
    assert served.metric("otter_forwards_total") == 3 + len(rewards)
    assert served.metric("otter_reward_sum") == pytest.approx(sum(rewards))
    assert served.metric("otter_mean_reward") == pytest.approx(sum(rewards) / len(rewards))
    assert served.metric("otter_queue_length") == served.metric("otter_running") == 0
    first, later = "otter_time_to_first_token_seconds", "otter_time_per_token_seconds"
    assert served.metric(f"{first}_count") == 3
    assert served.metric(f"{later}_count") == len(rewards) - 3
    assert served.metric(f"{first}_bucket", le="+Inf") == 3


def test_drafts_are_counted(serve: Serve) -> None:
    served = serve()
    for drafts in ("none", "lookup"):
        options = {"text_input": "abcabcabcabc", "method": "plain", "max_tokens": 8}
        served.ask(**options, drafts=drafts).wait()
    served.model.finalize()
    # The last tokens occurred before, so something is drafted; the engine's answers are random.
    assert served.metric("otter_drafted_total") > 0
    assert served.metric("otter_accepted_total") <= served.metric("otter_drafted_total")


def test_drafts_that_there_are_not_are_refused(serve: Serve) -> None:
    answer = serve().ask(text_input="p", drafts="medusa").wait()[0]
    assert "drafts must be one of none, lookup, auto here" in str(answer.error().message())


def test_closed_gates_are_counted(serve: Serve) -> None:
    served = serve()
    for gate in (0.0, 99.0, 99.0):
        whole = served.ask(text_input="p", max_tokens=4, gate=gate, return_candidates=True).wait()
        counts = outputs(whole[0])["candidate_counts"]
        # What is closed has one candidate, which was scored all the same.
        assert (counts == [1] * len(counts)) == (gate == 99.0)
    served.model.finalize()
    assert served.metric("otter_gated_total") == 2 * len(counts)


def test_log_lines_are_json_without_prompts(
    serve: Serve, capsys: pytest.CaptureFixture[str]
) -> None:
    served = serve()
    served.ask(name="r1", text_input="a secret", max_tokens=3).wait()
    served.ask(name="r2", text_input="another secret", method="nucleus")
    served.model.finalize()
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert "secret" not in json.dumps(lines)
    events = {line.get("request_id"): line for line in lines}
    assert events["r1"]["event"] == "completed" and events["r1"]["tokens"] == 3
    assert events["r2"]["event"] == "rejected" and "nucleus" in events["r2"]["error"]
    assert {line["model"] for line in lines} == {"otter"}


def test_log_has_prompts_if_asked_to(serve: Serve, capsys: pytest.CaptureFixture[str]) -> None:
    served = serve(log_prompts=True)
    served.ask(name="r1", text_input="a secret", max_tokens=3).wait()
    served.model.finalize()
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [line["prompt"] for line in lines if line["event"] == "completed"] == ["a secret"]


def test_unloading_ends_what_is_left(serve: Serve) -> None:
    served = serve(max_batch_size=2)
    senders = [served.ask(text_input=f"p{i}", max_tokens=40) for i in range(6)]
    served.model.finalize()
    assert all(outputs(sender.wait(0)[0])["token_id"] for sender in senders)


def test_a_bad_configuration_is_the_reason_why_a_model_does_not_load(serve: Serve) -> None:
    served = serve()
    config = arguments(Settings())
    config["model_config"] = config["model_config"].replace("max_queue", "max_qeue")
    exception = sys.modules["triton_python_backend_utils"].TritonModelException
    with pytest.raises(exception, match="unknown parameter 'max_qeue'; did you mean max_queue"):
        type(served.model)().initialize(config)


def test_a_response_that_cannot_be_sent_ends_its_own_request_only(
    serve: Serve, capsys: pytest.CaptureFixture[str]
) -> None:
    served = serve(endless(), max_batch_size=2)
    broken = InferenceRequest(arrays({"text_input": "a", "max_tokens": LONG, "stream": True}), "r1")

    def send(response: InferenceResponse | None, flags: int = 0) -> None:
        raise RuntimeError("the connection is gone")

    broken.sender.send = send  # type: ignore[method-assign]
    fine = served.ask(text_input="b", max_tokens=20)
    served.model.execute([broken])
    assert len(outputs(fine.wait()[0])["token_id"]) == 20
    served.model.finalize()
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    events = [line["event"] for line in lines if line.get("request_id") == "r1"]
    assert "not_sent" in events and "cancelled" in events and "completed" not in events


def test_a_question_that_fails_does_not_end_the_watch(
    serve: Serve, capsys: pytest.CaptureFixture[str]
) -> None:
    served = serve(endless(), max_batch_size=2)
    odd = InferenceRequest(arrays({"text_input": "a", "max_tokens": 60}))
    gone = InferenceRequest(arrays({"text_input": "b", "max_tokens": LONG}))

    def is_cancelled() -> bool:
        raise RuntimeError("no answer")

    odd.sender.is_cancelled = is_cancelled  # type: ignore[method-assign]
    served.model.execute([odd, gone])
    gone.sender.cancelled = True
    assert error(gone.sender.wait()).code() == TritonError.CANCELLED
    assert len(outputs(odd.sender.wait()[0])["token_id"]) == 60
    assert capsys.readouterr().err.count("watch_failed") == 1


@pytest.mark.parametrize(
    ("kind", "number", "visible", "chosen"),
    [
        ("GPU", "1", None, "1"),
        ("GPU", "1", "4,6", "6"),
        ("GPU", "2", "4,6", "2"),
        ("CPU", "0", "4,6", "4,6"),
    ],
)
def test_a_gpu_instance_sees_its_own_device(
    serve: Serve,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    number: str,
    visible: str | None,
    chosen: str,
) -> None:
    served = serve()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible or "")
    module = sys.modules[type(served.model).__module__]
    module._choose_device({"model_instance_kind": kind, "model_instance_device_id": number})
    assert os.environ["CUDA_VISIBLE_DEVICES"] == chosen
