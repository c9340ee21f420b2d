# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""The real Hub client, each time in a fresh process, against a Hub on the loopback interface."""

import json
from pathlib import Path

import datasets
import numpy as np
import pytest
from hub_server import TOKEN, HubServer
from PIL import Image
from scripts import CLASSES, EXAMPLES, make_folder, make_pixels, make_vae, run_process, workplace
from tiny import make_pipeline, make_text_pipeline, make_transformer

import diffusers
from diffusers_lowfreq import LowFreqPipeline


pytestmark = [pytest.mark.slow, pytest.mark.usefixtures(workplace.__name__)]

TRAIN = [EXAMPLES / "train_lowfreq.py", *"--output_dir out --resolution 16 --transformer_size nano".split()]
TRAIN += "--prior_size nano --train_batch_size 8 --prior_train_batch_size 8 --max_train_steps 2".split()
TRAIN += "--prior_max_train_steps 2 --lr_warmup_steps 1 --num_validation_images 2".split()

GENERATE = """
import sys, torch, diffusers_lowfreq
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained(sys.argv[1])
generator = [torch.Generator().manual_seed(i) for i in range(2)]
images = pipe(["red", "blue"], num_inference_steps=2, guidance_scale=2.0, generator=generator, output_type="np").images
__import__("numpy").save("images.npy", images)
"""


@pytest.fixture
def hub():
    with HubServer() as server:
        yield server


def generate_here(folder: str) -> np.ndarray:
    import torch

    generator = [torch.Generator().manual_seed(i) for i in range(2)]
    kwargs = {"num_inference_steps": 2, "guidance_scale": 2.0, "output_type": "np"}
    return LowFreqPipeline.from_pretrained(folder)(["red", "blue"], generator=generator, **kwargs).images


def test_a_pipeline_that_is_pushed_loads_by_name_without_remote_code(workplace, hub):
    make_folder(workplace / "images")
    push = ["--push_to_hub", "--hub_model_id", "org/name", "--hub_token", TOKEN]
    run_process(*TRAIN, "--patch_size", 4, "--train_data_dir", "images", *push, cwd=workplace, **hub.environment)
    files = hub.repos["models", "org/name"]
    assert {"model_index.json", "README.md", f"transformer/{'diffusion_pytorch_model.safetensors'}"} <= set(files)
    assert not [path for path in files if "checkpoint" in path or "cache" in path or path.startswith("logs")]
    assert not [path for path in files if path.endswith(".py")]
    assert 'from_pretrained("org/name")' in files["README.md"].decode()
    assert TOKEN not in b"".join(files.values()).decode(errors="ignore")

    run_process("-c", GENERATE, "org/name", cwd=workplace, HF_HOME=str(workplace / "fresh"), **hub.environment)
    np.testing.assert_array_equal(np.load("images.npy"), generate_here("out"))


TEXT = """
import sys, torch
from diffusers_lowfreq import LowFreqTextToImagePipeline
from diffusers_lowfreq.text_encoding import encode_text, load_text_encoder

if sys.argv[1] == "push":
    LowFreqTextToImagePipeline.from_pretrained("pipe").push_to_hub("org/text", token=sys.argv[2])
else:  # the encoder alone, as the training script loads it
    parts = load_text_encoder("org/text", "text_encoder", "tokenizer")
    torch.save(encode_text(*parts, ["a red cat"])[0], "embedding.pt")
"""


def test_a_pipeline_of_text_is_pushed_with_its_encoder_and_loads_by_name(workplace, hub):
    import torch

    pipe = make_text_pipeline(vae="kl")
    pipe.save_pretrained("pipe")
    run_process("-c", TEXT, "push", TOKEN, cwd=workplace, **hub.environment)
    files = hub.repos["models", "org/text"]
    assert {"text_encoder/model.safetensors", "tokenizer/tokenizer.json"} <= set(files)
    assert 'pipe("a photo of a cat"' in files["README.md"].decode() and not [f for f in files if f.endswith(".py")]
    fresh = {"HF_HOME": str(workplace / "fresh"), **hub.environment}
    run_process("-c", GENERATE, "org/text", cwd=workplace, **fresh)
    kwargs = {"num_inference_steps": 2, "guidance_scale": 2.0, "output_type": "np"}
    expected = pipe(["red", "blue"], generator=[torch.Generator().manual_seed(i) for i in range(2)], **kwargs).images
    np.testing.assert_allclose(np.load("images.npy"), expected, atol=1e-6)
    run_process("-c", TEXT, "load", cwd=workplace, **fresh)
    embedding = pipe.encode_prompt("a red cat", do_classifier_free_guidance=False)[0]
    torch.testing.assert_close(torch.load("embedding.pt"), embedding)


PUSH = """
import sys
from diffusers_lowfreq import LowFreqPipeline

pipe = LowFreqPipeline.from_pretrained("pipe")
pipe.push_to_hub("org/pushed", token=sys.argv[1], variant="fp16")
pipe.save_pretrained("saved", push_to_hub=True, repo_id="org/saved", token=sys.argv[1], max_shard_size="20KB")
pipe.transformer.push_to_hub("org/flow", token=sys.argv[1])
"""


def push(workplace, hub):
    make_pipeline(vae=None).save_pretrained("pipe")
    run_process("-c", PUSH, TOKEN, cwd=workplace, **hub.environment)
    return hub.repos["models", "org/pushed"], hub.repos["models", "org/saved"]


def test_what_python_pushes_has_a_card_of_facts_and_keeps_one_that_is_there(workplace, hub):
    pushed, saved = push(workplace, hub)
    for name, files in (("org/pushed", pushed), ("org/saved", saved)):
        card = files["README.md"].decode()
        assert f'from_pretrained("{name}")' in card and "diffusers-lowfreq" in card and "| factor | 2 |" in card
        assert "| parameters | " in card and card.index("import diffusers_lowfreq") < card.index(
            "from diffusers import"
        )
    assert "transformer/diffusion_pytorch_model.fp16.safetensors" in pushed
    assert "transformer/diffusion_pytorch_model.safetensors.index.json" in saved  # in shards
    pushed["README.md"] = b"---\nlicense: apache-2.0\n---\nwritten by hand\n"
    run_process("-c", PUSH, TOKEN, cwd=workplace, **hub.environment)
    assert "written by hand" in hub.repos["models", "org/pushed"]["README.md"].decode()


LOAD = """
import json, sys, torch
from diffusers_lowfreq import LowFreqPipeline, LowFreqTransformer2DModel

answers = {}
for title, (kind, options) in json.loads(sys.argv[1]).items():
    cls = LowFreqPipeline if kind == "pipeline" else LowFreqTransformer2DModel
    try:
        model = cls.from_pretrained(**options)
        model = model.transformer if kind == "pipeline" else model
        answers[title] = [str(model.dtype), model.proj_in.weight.double().sum().item()]
    except Exception as error:
        answers[title] = [type(error).__mro__[-3].__name__, type(error).__name__, str(error)]
open("answers.json", "w").write(json.dumps(answers))
"""


def load(workplace, hub, home="fresh", **loads) -> dict:
    """Load several things in one fresh process; a dtype and a sum of weights of each, or the error."""
    environment = hub.environment if hub is not None else {"HF_HUB_OFFLINE": "1"}
    run_process("-c", LOAD, json.dumps(loads), cwd=workplace, HF_HOME=str(workplace / home), **environment)
    return json.loads((workplace / "answers.json").read_text())


def files_of(folder: str) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def by_name(name, kind="pipeline", **options):
    return kind, {"pretrained_model_name_or_path": name, **options}


def test_names_revisions_variants_tokens_shards_parts_and_the_cache(workplace, hub):
    pushed, saved = push(workplace, hub)
    sum_of = lambda pipe: pipe.transformer.proj_in.weight.double().sum().item()  # noqa: E731
    expected = sum_of(LowFreqPipeline.from_pretrained("pipe"))
    other = make_pipeline(vae=None, transformer=make_transformer(seed=9))
    other.save_pretrained("other")
    files = files_of("other")
    hub.repos["models", "org/whole"] = files_of("pipe")
    hub.branches["models", "org/whole", "next"] = files
    hub.repos["models", "org/private"] = files
    hub.private.add(("models", "org/private"))
    flow = hub.repos["models", "org/flow"]
    assert set(flow) >= {"config.json", "diffusion_pytorch_model.safetensors"}
    loads = {
        "sharded": by_name("org/saved"),
        "variant": by_name("org/pushed", variant="fp16"),
        "revision": by_name("org/whole", revision="next"),
        "token": by_name("org/private", token=TOKEN),
        "part": by_name("org/whole", kind="flow", subfolder="transformer"),
        "alone": by_name("org/flow", kind="flow"),
    }
    answers = load(workplace, hub, **loads)
    sums = {title: answer[1] for title, answer in answers.items()}
    changed = sum_of(other)
    assert sums == pytest.approx(dict.fromkeys(loads, expected) | {"revision": changed, "token": changed})
    assert expected != pytest.approx(changed)
    # What is in the cache needs no Hub, by `HF_HUB_OFFLINE` and by argument
    offline = {title: loads[title] for title in ("sharded", "revision", "part", "alone")}
    assert load(workplace, None, **offline) == {title: answers[title] for title in offline}
    requests = len(hub.requests)
    local = {k: by_name(v[1].pop("pretrained_model_name_or_path"), v[0], **v[1], local_files_only=True) for k, v in offline.items()}  # fmt: skip
    assert load(workplace, hub, **local) == {title: answers[title] for title in offline}
    assert len(hub.requests) == requests


def test_what_is_in_the_cache_is_not_fetched_again(workplace, hub):
    """By name costs questions about the repository, beside loading the folder in the cache, and no file."""
    make_pipeline(vae=None).save_pretrained("pipe")
    hub.repos["models", "org/name"] = files_of("pipe")
    first = load(workplace, hub, pipe=by_name("org/name"))
    assert any(method == "GET" and path.endswith("safetensors") for method, path in hub.requests)
    hub.requests.clear()
    assert load(workplace, hub, pipe=by_name("org/name")) == first
    assert not [path for method, path in hub.requests if method == "GET" and "/resolve/" in path]
    assert len(hub.requests) <= (1 if diffusers.__version__ >= "0.42" else 3)
    # What is new there is fetched, and what is lacking in the cache
    other = make_pipeline(vae=None, transformer=make_transformer(seed=9))
    other.save_pretrained("other")
    hub.repos["models", "org/name"] = files_of("other")
    assert load(workplace, hub, pipe=by_name("org/name")) != first
    second = load(workplace, hub, pipe=by_name("org/name"))
    for path in (workplace / "fresh").rglob("snapshots/*/transformer/*.safetensors"):
        path.unlink()
    hub.requests.clear()
    assert load(workplace, hub, pipe=by_name("org/name")) == second != first
    assert [path for method, path in hub.requests if path.endswith("transformer/diffusion_pytorch_model.safetensors")]


def test_what_cannot_be_loaded_is_named(workplace, hub):
    make_pipeline(vae=None).save_pretrained("pipe")
    hub.repos["models", "org/saved"] = files = files_of("pipe")
    hub.repos["models", "org/private"] = files
    hub.private.add(("models", "org/private"))
    weights = "prior/diffusion_pytorch_model.safetensors"
    hub.repos["models", "org/cut"] = files | {weights: files[weights][: len(files[weights]) // 2]}
    hub.repos["models", "org/lacking"] = {k: v for k, v in files.items() if k != weights}
    hub.repos["models", "org/other"] = {"config.json": b"{}", "model.safetensors": files[weights]}
    index = json.loads(files["model_index.json"]) | {"transformer": ["os", "system"]}
    hub.repos["models", "org/class"] = files | {"model_index.json": json.dumps(index).encode()}
    loads = {name: by_name(f"org/{name}") for name in ("nowhere", "private", "cut", "lacking", "other", "class")}
    loads["revision"] = by_name("org/saved", revision="nowhere")
    loads["variant"] = by_name("org/saved", variant="fp16")
    answers = load(workplace, hub, **loads)
    for title, answer in answers.items():
        assert len(answer) == 3 and answer[1] in ("OSError", "ValueError", "EnvironmentError"), (title, answer)
        told = {"revision": "nowhere", "variant": "fp16", "cut": "prior", "lacking": "prior"}.get(
            title, f"org/{title}"
        )
        assert told in answer[2], (title, answer)
    (offline,) = load(workplace, None, home="empty", nothing=by_name("org/saved")).values()
    assert offline[1] == "OSError" and "org/saved" in offline[2]


def test_a_wrong_token_is_found_before_any_work(workplace, hub):
    make_folder(workplace / "images")
    push = ["--push_to_hub", "--hub_model_id", "org/name", "--hub_token", "hf_wrong"]
    with pytest.raises(AssertionError, match="401"):
        run_process(*TRAIN, "--train_data_dir", "images", *push, cwd=workplace, **hub.environment)
    assert not (workplace / "out").exists()


@pytest.mark.parametrize("streaming", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_data_and_autoencoder_come_by_name(workplace, hub, streaming):
    data = {"img": [Image.fromarray(p) for p in make_pixels(12)], "label": [i % 3 for i in range(12)]}
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=CLASSES)})
    hub.repos["datasets", "org/data"] = {}
    for i in range(2):
        name = f"train-{i:05d}-of-00002.parquet"
        datasets.Dataset.from_dict(data, features).shard(2, i).to_parquet(name)
        hub.repos["datasets", "org/data"][f"data/{name}"] = (workplace / name).read_bytes()
    make_vae(workplace / "vae")
    hub.repos["models", "org/vae"] = {path.name: path.read_bytes() for path in (workplace / "vae").iterdir()}
    names = "--dataset_name org/data --image_column img --pretrained_vae_model_name_or_path org/vae --factor 2"
    run_process(*TRAIN, *names.split(), *["--streaming"] * streaming, cwd=workplace, **hub.environment)
    assert bool(list((workplace / "hf").rglob("*.arrow"))) != streaming  # a copy of the set
    pipe = LowFreqPipeline.from_pretrained("out")
    assert sorted(pipe.labels) == CLASSES and pipe.vae.config.latents_mean is not None
    assert (
        f"| images | {'a stream' if streaming else 12} of org/data |" in (workplace / "out" / "README.md").read_text()
    )
    assert generate_here("out").shape == (2, 16, 16, 3)


def test_a_teacher_comes_by_name(workplace, hub):
    make_folder(workplace / "images")
    run_process(*TRAIN, "--patch_size", 4, "--train_data_dir", "images", cwd=workplace, **hub.environment)
    files = [path for path in (workplace / "out").rglob("*") if path.is_file()]
    parts = ("model_index.json", "transformer", "prior", "scheduler", "prior_scheduler")
    names = {str(path.relative_to(workplace / "out")): path for path in files}
    hub.repos["models", "org/teacher"] = {
        name: path.read_bytes() for name, path in names.items() if name.split("/")[0] in parts
    }
    student = [option for option in TRAIN if option != "nano"]  # the sizes are the teacher's
    student = [option for option in student if option not in ("--transformer_size", "--prior_size")]
    student[student.index("out")] = "student"
    teacher = ["--teacher", "org/teacher", "--guidance_scale", 2, "--prior_guidance_scale", 2]
    run_process(*student, "--train_data_dir", "images", *teacher, cwd=workplace, **hub.environment)
    pipe = LowFreqPipeline.from_pretrained("student")
    assert pipe.transformer.config.use_meanflow and pipe.prior.config.guidance_scale == 2.0
    assert "| teacher | org/teacher |" in (workplace / "student" / "README.md").read_text()


DEPLOYED = """
import sys

sys.path.insert(0, "space")
import pictures

pipelines = pictures.load_pipelines()
print(list(pipelines), [picture.image.size for picture in pictures.generate(pipelines["cifar10-32"], "cat", 2, 2.0, 0.5, 0)])
"""


def test_every_checkpoint_and_the_space_are_published_under_their_names(workplace, hub):
    pipe = make_pipeline(vae=None)
    pipe.save_pretrained("checkpoints/small")
    line = 'pipe = DiffusionPipeline.from_pretrained("checkpoints/small")  # from a clone'
    (workplace / "checkpoints/small/README.md").write_text(f"---\nlicense: apache-2.0\n---\n{line}\n")
    pipe.transformer.save_pretrained("checkpoints/graders/sharp")
    (workplace / "checkpoints/small-lora").mkdir()
    (workplace / "checkpoints/small-lora/pytorch_lora_weights.safetensors").write_bytes(b"weights")
    (workplace / "checkpoints/small-lora/README.md").write_text(
        f'---\nlicense: apache-2.0\n---\n{line}\npipe.load_lora_weights("checkpoints/small-lora")  # from a clone\n'
    )
    options = ["--namespace", "org", "--checkpoints_dir", "checkpoints", "--hub_token", TOKEN]
    output = run_process(EXAMPLES / "publish.py", *options, cwd=workplace, **hub.environment)
    assert "checkpoints/small -> org/small" in output and set(hub.repos) == {
        ("models", "org/small"),
        ("models", "org/grader-sharp"),
        ("spaces", "org/coarse-to-fine"),
        ("models", "org/small-lora"),
    }
    card = hub.repos["models", "org/small-lora"]["README.md"].decode()
    assert card.endswith('from_pretrained("org/small")\npipe.load_lora_weights("org/small-lora")\n')
    assert hub.repos["models", "org/small"]["README.md"].decode().endswith('from_pretrained("org/small")\n')
    answers = load(workplace, hub, pipe=by_name("org/small"), grader=by_name("org/grader-sharp", kind="flow"))
    expected = pipe.transformer.proj_in.weight.double().sum().item()
    assert [answer[1] for answer in answers.values()] == pytest.approx([expected] * 2)
    space, folder = hub.repos["spaces", "org/coarse-to-fine"], EXAMPLES / "space"
    here = {path: content for path, content in files_of(folder).items() if "__pycache__" not in path}
    assert set(space) == set(here) and hub.sdks == {"org/coarse-to-fine": "gradio"}
    for path, content in here.items():  # its models are those that are published with it
        assert space[path] == content.replace(b"diffusers-lowfreq/cifar10-32", b"org/cifar10-32"), path
    assert b"- org/cifar10-32-one-step\n" in space["README.md"] and b'"org/cifar10-32"' in space["pictures.py"]
    # Deployed, where there is no clone, it takes them from the Hub
    for name in ("org/cifar10-32", "org/cifar10-32-one-step"):
        hub.repos["models", name] = hub.repos["models", "org/small"]
    for path, content in space.items():
        (workplace / "space" / path).parent.mkdir(parents=True, exist_ok=True)
        (workplace / "space" / path).write_bytes(content)
    output = run_process("-c", DEPLOYED, cwd=workplace, HF_HOME=str(workplace / "fresh"), **hub.environment)
    assert "['cifar10-32', 'cifar10-32-one-step'] [(8, 8), (8, 8)]" in output
    with pytest.raises(AssertionError, match="`checkpoints_dir` must hold"):
        run_process(EXAMPLES / "publish.py", "--checkpoints_dir", "hf", cwd=workplace, **hub.environment)
