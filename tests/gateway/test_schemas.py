import pytest
from pydantic import ValidationError

from coordinator.gateway.misspelt import MAX_FIELDS
from coordinator.gateway.schemas import MAX_MESSAGES, MAX_PARTS, ChatRequest, CompletionRequest
from specedge_p2p.lm.ports import SamplingParams

CHAT = {"model": "m", "messages": [{"role": "user", "content": "x"}]}
PROMPT = {"model": "m", "prompt": "x"}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, SamplingParams()),
        ({"temperature": None, "top_p": None, "top_k": None, "min_p": None}, SamplingParams()),
        ({"temperature": 0}, SamplingParams(temperature=0)),
        ({"top_k": -1}, SamplingParams(top_k=0)),
        ({"top_p": 0}, SamplingParams(temperature=0)),
        ({"temperature": 1e-9, "top_p": 0.5}, SamplingParams(temperature=0, top_p=0.5)),
        ({"top_p": 0.5, "min_p": 0.1}, SamplingParams(top_p=0.5, min_p=0.1)),
    ],
)
def test_sampling(fields: dict[str, object], expected: SamplingParams) -> None:
    assert ChatRequest.model_validate(CHAT | fields).sampling() == expected


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, None),
        ({"max_tokens": 3}, 3),
        ({"max_completion_tokens": 4}, 4),
        ({"max_tokens": 3, "max_completion_tokens": 4}, 4),
    ],
)
def test_chat_token_limit(fields: dict[str, object], expected: int | None) -> None:
    assert ChatRequest.model_validate(CHAT | fields).token_limit() == expected


def test_completion_token_limit() -> None:
    assert CompletionRequest.model_validate(PROMPT).token_limit() == 16
    assert CompletionRequest.model_validate(PROMPT | {"max_tokens": None}).token_limit() == 16
    assert CompletionRequest.model_validate(PROMPT | {"max_tokens": 2}).token_limit() == 2


def test_neutral_values_and_unknown_fields_are_taken() -> None:
    fields = {
        "tools": [],
        "n": 1,
        "presence_penalty": 0.0,
        "logit_bias": None,
        "response_format": {"type": "text"},
        "store": True,
        "metadata": {"a": "b"},
        "service_tier": "auto",
    }
    ChatRequest.model_validate(CHAT | fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"top_logprobs": 2},
        {"frequency_penalty": 0.5},
        {"logit_bias": {"5": 1}},
        {"messages": [{"role": "tool", "content": "x"}]},
        {"messages": [{"role": "assistant", "tool_calls": [{}]}]},
        {"modalities": ["audio"]},
        {"tool_choice": "required"},
    ],
)
def test_what_would_change_the_answer_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ValidationError) as caught:
        ChatRequest.model_validate(CHAT | fields)
    assert caught.value.errors()[0]["type"] == "unsupported_parameter"


@pytest.mark.parametrize(
    "name",
    ["volunteer", "Volunteers", "voluntears", "volunters", "vollunteers", "spec_edge", "specEdge"],
)
def test_law6_privacy_a_misspelt_field_of_our_own_is_refused(name: str) -> None:
    for body, schema in ((CHAT, ChatRequest), (PROMPT, CompletionRequest)):
        with pytest.raises(ValidationError, match=f"unknown field '{name}': did you mean '"):
            schema.model_validate(body | {name: "none"})


@pytest.mark.parametrize("name", ["extra_body", "extraBody", "Extra_Body"])
def test_law6_privacy_what_a_client_should_have_unpacked_is_refused(name: str) -> None:
    for body, schema in ((CHAT, ChatRequest), (PROMPT, CompletionRequest)):
        with pytest.raises(ValidationError, match="put what is in it beside 'model'"):
            schema.model_validate(body | {name: {"volunteers": "none"}})


def test_law6_privacy_volunteers_do_not_go_into_the_extension() -> None:
    with pytest.raises(ValidationError, match="not permitted"):
        ChatRequest.model_validate(CHAT | {"specedge": {"volunteers": "none"}})


def test_what_other_servers_know_is_not_taken_for_misspelt() -> None:
    names = [
        *("store", "metadata", "service_tier", "reasoning_effort", "verbosity", "length_penalty"),
        *("parallel_tool_calls", "prompt_cache_key", "safety_identifier", "speed", "spec", "edge"),
        *("skip_special_tokens", "spaces_between_special_tokens", "guided_json", "use_beam_search"),
    ]
    ChatRequest.model_validate(CHAT | dict.fromkeys(names, 1))


def test_law7_bounded_fields_to_compare() -> None:
    ChatRequest.model_validate(CHAT | {"v" * 2**20: 1})
    many = {f"volunteer{number}": 1 for number in range(MAX_FIELDS)}
    with pytest.raises(ValidationError, match=f"more than {MAX_FIELDS} fields") as caught:
        ChatRequest.model_validate(CHAT | many)
    assert caught.value.error_count() == 1


@pytest.mark.parametrize("stop", ["", [""], "x" * 300, 5, [5]])
def test_bad_stop(stop: object) -> None:
    with pytest.raises(ValidationError):
        ChatRequest.model_validate(CHAT | {"stop": stop})


@pytest.mark.parametrize("prompt", ["", [], [""], ["a", 1], [-1], [True], None, {"a": 1}])
def test_bad_prompt(prompt: object) -> None:
    with pytest.raises(ValidationError):
        CompletionRequest.model_validate({"model": "m", "prompt": prompt})


MANY = 100_000


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": [-1] * MANY},
        {"prompt": [5] * MANY + ["x"]},
        {"prompt": ["x"] * MANY + [5]},
        {"prompt": ["x"] * MANY},
        {"prompt": [[]] * MANY},
        {"stop": [5] * MANY},
        {"stop": ["x"] * MANY},
    ],
)
def test_law7_bounded_a_list_has_one_error(fields: dict[str, object]) -> None:
    with pytest.raises(ValidationError) as caught:
        CompletionRequest.model_validate(PROMPT | fields)
    assert caught.value.error_count() == 1


@pytest.mark.parametrize(
    "messages",
    [
        [0] * MANY,
        [{}] * MAX_MESSAGES,
        [{"role": "user", "content": [0] * MANY}],
        [{"role": "user", "content": [{}] * MAX_PARTS}],
        [{"role": "user", "content": [{"type": {}, "text": 0}] * MAX_PARTS}] * MAX_MESSAGES,
        [{"role": "user", "content": 5}] * MAX_MESSAGES,
    ],
)
def test_law7_bounded_messages_have_few_errors(messages: list[object]) -> None:
    with pytest.raises(ValidationError) as caught:
        ChatRequest.model_validate({"model": "m", "messages": messages})
    assert caught.value.error_count() <= 2  # the fields of one part


def test_law7_bounded_everything_wrong_at_once() -> None:
    """An error for every field at most, and two for one that has fields of its own."""
    names = ChatRequest.model_fields.keys() - {"messages"}
    fields: dict[str, object] = dict.fromkeys(names, [[]] * 10)
    fields["messages"] = [{"role": [], "content": [[]] * 10}] * 9
    with pytest.raises(ValidationError) as caught:
        ChatRequest.model_validate(fields)
    assert caught.value.error_count() <= len(names) + 2


def test_law7_bounded_a_list_is_checked_in_one_form_only() -> None:
    with pytest.raises(ValidationError) as caught:
        CompletionRequest.model_validate(PROMPT | {"prompt": [5] * MANY + ["x"]})
    (error,) = caught.value.errors()
    assert error["loc"] == ("prompt", "#list", MANY)
    assert CompletionRequest.model_validate(PROMPT | {"prompt": [5] * MANY}).prompt == [5] * MANY


def test_parts_of_all_messages_are_counted_together() -> None:
    part = {"type": "text", "text": "x"}
    half = {"role": "user", "content": [part] * (MAX_PARTS // 2)}
    ChatRequest.model_validate({"model": "m", "messages": [half, half]})
    more = {"role": "user", "content": [part]}
    with pytest.raises(ValidationError, match="at most 4096 parts"):
        ChatRequest.model_validate({"model": "m", "messages": [half, half, more]})
