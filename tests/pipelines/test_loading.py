# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""How saved pipelines are recorded, found and refused."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import make_pipeline, seeded

import diffusers_lowfreq
from diffusers import AutoModel, DiffusionPipeline
from diffusers_lowfreq import LowFreqPipeline, LowFreqTransformer2DModel


COMPONENTS = ["prior", "prior_scheduler", "scheduler", "transformer", "vae"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    make_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    """A copy of the saved pipeline, to be damaged."""
    return shutil.copytree(saved, tmp_path / "copy")


def run_python(code, cwd):
    result = subprocess.run([sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result


def test_model_index_names_this_library_and_holds_no_list_but_components(saved):
    index = json.loads((saved / "model_index.json").read_text())
    assert index["_class_name"] == "LowFreqPipeline"
    assert index["transformer"] == index["prior"] == ["diffusers_lowfreq", "LowFreqTransformer2DModel"]
    assert index["scheduler"] == ["diffusers_lowfreq", "LowFreqFlowMatchScheduler"]
    assert index["vae"] == ["diffusers", "AutoencoderKL"]
    assert index["prior_scheduler"] == ["diffusers", "FlowMatchEulerDiscreteScheduler"]
    assert index.pop("guider") == [None, None]
    assert sorted(name for name, value in index.items() if isinstance(value, list)) == COMPONENTS
    assert not list(saved.rglob("*.bin")) and len(list(saved.rglob("*.safetensors"))) == 3


def test_absent_components_are_recorded_as_such(tmp_path):
    make_pipeline(None, prior=None).save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["vae"] == index["prior"] == index["prior_scheduler"] == [None, None]
    loaded = LowFreqPipeline.from_pretrained(tmp_path)
    assert loaded.vae is None and loaded.prior is None and loaded.vae_scale_factor == 1


def test_the_import_alone_lets_diffusers_find_the_pipeline_and_it_loads_without_a_warning(saved, tmp_path):
    code = f"""
import torch
import diffusers_lowfreq
from diffusers import DiffusionPipeline
pipe = DiffusionPipeline.from_pretrained({str(saved)!r})
pipe.set_progress_bar_config(disable=True)
assert type(pipe) is diffusers_lowfreq.LowFreqPipeline
images = pipe(["dog", 2], generator=torch.Generator().manual_seed(0), output_type="pt").images
torch.save(images, "images.pt")
"""
    noise = run_python(code, tmp_path).stderr
    assert "Expected types" not in noise and "config attributes" not in noise
    expected = make_pipeline()(["dog", 2], generator=seeded(), output_type="pt").images
    torch.testing.assert_close(torch.load(tmp_path / "images.pt"), expected)


def test_the_hub_check_of_custom_components_accepts_ours(saved):
    # what `DiffusionPipeline.download` runs on a model_index.json before it fetches anything
    from diffusers.pipelines.pipeline_loading_utils import _get_custom_components_and_folders

    index = json.loads((saved / "model_index.json").read_text())
    components = {name: value for name, value in index.items() if isinstance(value, list)}
    files = [str(path.relative_to(saved)) for path in saved.rglob("*")]
    custom, folders = _get_custom_components_and_folders("someone/some-model", components, files)
    assert not custom and sorted(folders) == sorted([*COMPONENTS, "guider"])  # of those that are there


def test_single_components_load_by_their_class_and_by_auto_model(saved):
    expected = make_pipeline().transformer.state_dict()
    for loader in (AutoModel, LowFreqTransformer2DModel):
        model = loader.from_pretrained(str(saved), subfolder="transformer")
        assert type(model) is LowFreqTransformer2DModel
        assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())


def test_the_import_adds_nothing_to_the_base_classes_it_builds_on(tmp_path):
    code = """
import sys
from diffusers import AutoencoderDC, AutoencoderKL, AutoencoderTiny, DiffusionPipeline, ModelMixin, SchedulerMixin
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.callbacks import PipelineCallback
from diffusers.loaders import PeftAdapterMixin
before = {name.split(".")[0] for name in sys.modules}
import diffusers_lowfreq
print(*sorted({name.split(".")[0] for name in sys.modules} - before))
"""
    assert run_python(code, tmp_path).stdout.split() == ["diffusers_lowfreq"]


# ---------------------------------------------------------------------------------------------------- broken folders


def test_pickled_weights_are_not_written(tmp_path, caplog):
    """What is saved can be loaded, whatever was asked for: the files of `safe_serialization=False` are the usual ones."""
    pipe = make_pipeline()
    pipe.save_pretrained(tmp_path / "usual", True, "fp16")
    assert "safe_serialization" not in caplog.text
    pipe.save_pretrained(tmp_path / "asked", safe_serialization=False, variant="fp16")
    assert "`safe_serialization=False` is not followed" in caplog.text
    usual, asked = (
        {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
        for folder in (tmp_path / "usual", tmp_path / "asked")
    )
    assert usual == asked and sum(name.endswith(".fp16.safetensors") for name in asked) == 3


def test_pickled_weights_are_refused(tmp_path):
    DiffusionPipeline.save_pretrained(make_pipeline(), tmp_path, safe_serialization=False)
    assert len(list(tmp_path.rglob("*.bin"))) == 3
    with pytest.raises(OSError, match="safetensors"):
        LowFreqPipeline.from_pretrained(tmp_path)


@pytest.mark.parametrize("component", ["transformer", "prior", "vae"])
@pytest.mark.parametrize("keep", [0, 7, 100, 0.5, 0.999])
def test_truncated_weights_are_named(folder, component, keep):
    file = folder / component / "diffusion_pytorch_model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[: int(keep * len(content)) if isinstance(keep, float) else keep])
    with pytest.raises(OSError, match=f"{component}/diffusion_pytorch_model.safetensors"):
        LowFreqPipeline.from_pretrained(folder)


@pytest.mark.parametrize("component", COMPONENTS)
def test_a_missing_component_is_named(folder, component):
    shutil.rmtree(folder / component)
    with pytest.raises(ValueError, match=f"`pretrained_model_name_or_path` must hold a folder '{component}'"):
        LowFreqPipeline.from_pretrained(str(folder))
    given = {component: make_pipeline().components[component]}
    assert LowFreqPipeline.from_pretrained(folder, **given).components[component] is given[component]


@pytest.mark.parametrize("component", COMPONENTS)
@pytest.mark.parametrize("content", [None, "{", ""])
def test_a_missing_or_broken_configuration_is_named(folder, component, content):
    file = folder / component / ("scheduler_config.json" if "scheduler" in component else "config.json")
    file.unlink() if content is None else file.write_text(content)
    with pytest.raises(OSError, match=f"{file.name} .*copy/{component}" if content is None else str(file)):
        LowFreqPipeline.from_pretrained(folder)


@pytest.mark.parametrize("component", ["transformer", "prior", "vae"])
def test_missing_weights_are_named(folder, component):
    (folder / component / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(OSError, match=f"diffusion_pytorch_model.safetensors .*copy/{component}"):
        LowFreqPipeline.from_pretrained(folder)


def damage(file, name, change):
    tensors = load_file(file)
    tensors |= {name: change(tensors.pop(name))} if change else {}
    tensors = {k: v for k, v in tensors.items() if change or k != name}
    save_file(tensors, file, metadata={"format": "pt"})


TENSORS = {"transformer": "proj_out.weight", "prior": "class_embed.weight", "vae": "decoder.conv_in.bias"}


@pytest.mark.parametrize("options", [{}, {"low_cpu_mem_usage": False}], ids=["default", "initialised"])
@pytest.mark.parametrize("component", TENSORS)
def test_a_missing_tensor_and_one_of_another_shape_are_named(folder, component, options):
    file, name = folder / component / "diffusion_pytorch_model.safetensors", TENSORS[component]
    loaders = {LowFreqPipeline: folder, LowFreqTransformer2DModel: file.parent}
    damage(file, name, lambda tensor: torch.cat([tensor, tensor]))
    for loader, path in loaders.items() if component != "vae" else [(LowFreqPipeline, folder)]:
        with pytest.raises(ValueError, match=f"{file}.*{name} expected shape"):
            loader.from_pretrained(path, **options)
    damage(file, name, None)
    for loader, path in loaders.items() if component != "vae" else [(LowFreqPipeline, folder)]:
        with pytest.raises(OSError, match=f"{file}' lack the tensor '{name}'"):
            loader.from_pretrained(path, **options)
    given = {component: make_pipeline().components[component]}
    assert LowFreqPipeline.from_pretrained(folder, **given).components[component] is given[component]


def test_a_missing_tensor_of_a_shard_is_named(folder):
    make_pipeline().save_pretrained(folder, max_shard_size="8KB")
    for component in ("transformer", "vae"):
        shards = sorted((folder / component).glob("*-of-*.safetensors"))
        name = min(load_file(shards[0]))
        LowFreqPipeline.from_pretrained(folder)
        damage(shards[0], name, None)
        with pytest.raises(OSError, match=f"copy/{component}' lack the tensor '{name}'"):
            LowFreqPipeline.from_pretrained(folder)
        make_pipeline().save_pretrained(folder, max_shard_size="8KB")


def test_the_information_about_loading_is_still_given(folder):
    model, information = LowFreqTransformer2DModel.from_pretrained(
        folder, subfolder="transformer", output_loading_info=True
    )
    assert isinstance(model, LowFreqTransformer2DModel) and information["missing_keys"] == []


@pytest.mark.parametrize("content", [None, "{"])
def test_a_missing_or_broken_index_is_named(folder, content):
    file = folder / "model_index.json"
    file.unlink() if content is None else file.write_text(content)
    for loader in (LowFreqPipeline, DiffusionPipeline):
        with pytest.raises(OSError, match="model_index.json"):
            loader.from_pretrained(folder)


def test_weights_of_another_shape_are_refused(folder):
    file = folder / "transformer" / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {"in_channels": 5}))
    with pytest.raises(ValueError, match="proj_in.weight expected shape .*20.* got .*16"):
        LowFreqPipeline.from_pretrained(folder)


# ------------------------------------------------------------------------------- other versions and other plugins


def rewrite(file, **changes):
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


CONFIGS = ["model_index.json", "transformer/config.json", "prior/config.json", "scheduler/scheduler_config.json"]


@pytest.mark.parametrize("config", CONFIGS)
def test_what_only_a_newer_version_understands_is_refused(folder, config):
    """By our class and by diffusers' alike; the setting and both versions are named."""
    assert json.loads((folder / config).read_text())["_diffusers_lowfreq_version"] == diffusers_lowfreq.__version__
    rewrite(folder / config, _diffusers_lowfreq_version="99.0.1", recursion_depth=3)
    message = f"`recursion_depth` in the configuration of a LowFreq.* {diffusers_lowfreq.__version__}: .* by 99.0.1"
    for loader in (LowFreqPipeline, DiffusionPipeline):
        with pytest.raises(ValueError, match=message):
            loader.from_pretrained(folder)


@pytest.mark.parametrize("config", CONFIGS)
def test_a_newer_version_without_anything_new_loads(folder, config, caplog):
    rewrite(folder / config, _diffusers_lowfreq_version="99.0.1")
    pipe = LowFreqPipeline.from_pretrained(folder)
    assert "ignored" not in caplog.text
    pipe.save_pretrained(folder / "again")  # by this version
    again = json.loads((folder / "again" / config).read_text())
    assert again["_diffusers_lowfreq_version"] == diffusers_lowfreq.__version__


def test_a_pipeline_of_diffusers_is_not_taken_for_ours(folder):
    rewrite(folder / "model_index.json", _class_name="SanaPipeline")
    with pytest.raises(
        ValueError,
        match="`pretrained_model_name_or_path` .*must be loaded from a low-frequency pipeline, .* a SanaPipeline",
    ):
        LowFreqPipeline.from_pretrained(folder)


def test_components_of_another_plugin_are_named(folder):
    rewrite(folder / "model_index.json", transformer=["other_plugin", "OtherTransformer2DModel"])
    with pytest.raises(ValueError, match="`pretrained_model_name_or_path` .*other_plugin"):
        LowFreqPipeline.from_pretrained(folder)
