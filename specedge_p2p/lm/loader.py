"""Load a model by name: the demo pair, a folder, or a name of the Hugging Face hub."""

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
)
from transformers.utils import logging as transformers_logging

from specedge_p2p.lm.families import check_layer_kinds, longest_context
from specedge_p2p.lm.files import Progress, find_model, fingerprint
from specedge_p2p.lm.kv_memory import KvMemory
from specedge_p2p.lm.parallel_group import fewest, share_arguments
from specedge_p2p.lm.ports import ModelError, ModelInfo
from specedge_p2p.lm.quantization import (
    Quantize,
    check_quantize,
    quantize_weights,
    quantized_fingerprint,
)
from specedge_p2p.lm.runner import TransformersModel
from specedge_p2p.lm.tree_attention import register_attention

_DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float64": torch.float64,
}


def load_model(  # noqa: PLR0913 - all but the name are options
    name_or_path: str,
    *,
    dtype: str = "auto",
    device: str = "auto",
    quantize: Quantize = "none",
    cache_rows: int | KvMemory | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
    num_ranks: int = 1,
) -> TransformersModel:
    """Load a causal language model of the hub's format, ready to run.

    Args:
        name_or_path: "demo-target", "demo-draft", a folder, or a hub name.
        dtype: of weights, cache and arithmetic; logits are chosen from in float32 or float64.
            "auto" is bfloat16 on a GPU and float32 elsewhere.
        device: "cpu", "cuda", "cuda:N"; "auto" takes a GPU where there is one.
        quantize: "int8" or "int4" weights; see quantization.py.
        cache_rows: rows of key-value cache, or the memory that they may take; None plans them
            from what is free.
        threads: of this process's torch; None leaves them.
        progress: called while files are downloaded.
        num_ranks: above 1 this process loads the share of its rank; see `parallel.py`.

    Raises:
        ModelError: with one line that says what is wrong and what to do.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if dtype == "auto":
        dtype = "bfloat16" if device.startswith("cuda") else "float32"
    if dtype not in _DTYPES:
        raise ModelError(f"dtype {dtype!r}: give one of {', '.join(_DTYPES)}")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ModelError("this machine has no CUDA device that torch can use: give device cpu")
    check_quantize(quantize, device, dtype)
    if threads is not None:
        torch.set_num_threads(threads)
    folder = find_model(name_or_path, progress=progress)
    config = _read_config(folder, name_or_path)
    is_plain = getattr(config, "quantization_config", None) is None
    with _quiet(), _without_torchao() if is_plain else nullcontext():
        register_attention()
    with _quiet():
        shares = share_arguments(config, name_or_path, num_ranks)
        model = _build(folder, name_or_path, config, _DTYPES[dtype], shares)
        try:
            quantize_weights(model, quantize, device)
            model = model.to(device)
            info = _info(folder, name_or_path, config, dtype)
            info = replace(info, fingerprint=quantized_fingerprint(info.fingerprint, quantize))
            agree = fewest if num_ranks > 1 else int
            return TransformersModel(model, info, cache_rows, agree)
        except torch.OutOfMemoryError as error:
            raise ModelError(f"{name_or_path} does not fit the memory of {device}") from error
        except RuntimeError as error:
            raise ModelError(f"{name_or_path} does not run in {dtype}: {_line(error)}") from error


def _read_config(folder: Path, name: str) -> Any:  # noqa: ANN401
    if not (folder / "config.json").is_file():
        raise ModelError(f"{name}: no config.json in {folder}: not a model folder")
    try:
        with _quiet():
            config = AutoConfig.from_pretrained(folder)
    except (ValueError, KeyError, OSError, StrictDataclassError) as error:
        raise ModelError(f"{name}: config.json is not understood: {_line(error)}") from error
    if config.is_encoder_decoder or type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ModelError(f"{name}: {config.model_type} is not a causal (decoder-only) model")
    check_layer_kinds(name, config.get_text_config())
    return config


def _build(
    folder: Path,
    name: str,
    config: Any,  # noqa: ANN401
    dtype: torch.dtype,
    shares: dict[str, Any],
) -> Any:  # noqa: ANN401
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            attn_implementation=register_attention(),
            # The fused kernel of a mixture's experts does not know float64.
            experts_implementation="eager" if dtype == torch.float64 else None,
            use_safetensors=True,
            output_loading_info=True,
            **shares,
        )
    except (SafetensorError, EOFError) as error:
        raise ModelError(f"{name}: broken weight file in {folder}: {_line(error)}") from error
    except OSError as error:
        raise ModelError(f"{name}: weights cannot be read: {_line(error)}") from error
    except (ValueError, ImportError) as error:
        raise ModelError(f"{name}: not supported: {_line(error)}") from error
    except KeyError as error:  # its attention is its own, not looked up by a name
        raise ModelError(f"{name}: attention of {config.model_type} is not supported") from error
    except RuntimeError as error:
        raise ModelError(f"{name}: weights do not fit the config: {_line(error)}") from error
    if missing := sorted(report["missing_keys"]):
        raise ModelError(f"{name}: {len(missing)} weights are missing, {missing[0]} for one")
    return model


def _info(folder: Path, name: str, config: Any, dtype: str) -> ModelInfo:  # noqa: ANN401
    text_config = config.get_text_config()
    return ModelInfo(
        name=name,
        vocab_size=int(text_config.vocab_size),
        max_context=longest_context(name, text_config),
        eos_token_ids=_eos_token_ids(folder, text_config),
        dtype=dtype,
        fingerprint=fingerprint(folder),
    )


def _eos_token_ids(folder: Path, config: Any) -> tuple[int, ...]:  # noqa: ANN401
    """The generation config's ends of sequence, else the config's."""
    eos = config.eos_token_id
    if (folder / "generation_config.json").is_file():
        generation_eos = GenerationConfig.from_pretrained(folder).eos_token_id
        eos = eos if generation_eos is None else generation_eos
    if eos is None:
        return ()
    return (eos,) if isinstance(eos, int) else tuple(eos)


def _line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]


@contextmanager
def _quiet() -> Iterator[None]:
    """Neither progress bars nor advice from transformers while a model is loaded."""
    verbosity = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


@contextmanager
def _without_torchao() -> Iterator[None]:
    """What is imported inside finds no torchao.

    transformers' model code imports it wherever it is installed, for checkpoints that it quantized.
    That takes seconds, and it says on stderr which of its kernels do not run here. None among the
    modules is Python's own way to bar an import; who quantizes imports it later.
    """
    if "torchao" in sys.modules:
        yield
        return
    sys.modules["torchao"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules["torchao"]
