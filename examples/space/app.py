#!/usr/bin/env python
# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""
The page of the Space: an image from a class, or from a coarse image of the visitor's own.

    python examples/space/app.py
"""

import base64
import html
import io
import os

import gradio as gr
from pictures import HUB_IDS, Picture, generate, load_pipelines, refine, settings
from PIL import Image


INTRODUCTION = f"""
# From coarse to fine

A small prior model draws a **coarse latent**. The flow starts from it, mixed with some noise, and adds the detail in few steps.
Or it starts from a coarse image of yours. The models of [diffusers-lowfreq](https://huggingface.co/{HUB_IDS[0]}) that run
here are a small preview: 32 × 32 pixels, the ten classes of CIFAR-10, two CPU cores.
"""
NOTE = """
*Effective NFE* counts forward passes of the flow, two for a guided step, and those of the prior model by their share of its FLOPs;
a one-step prior model is called once more for the picture of its coarse latent. *Seconds* are those since the server began.
"""
FOLDER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "sketches")
SKETCHES = {name: os.path.join(FOLDER, f"{name}.png") for name in ("ship", "horse", "automobile")}
COLORS = ["#9ecbe8", "#2f5d86", "#5f9442", "#e0b84c", "#c0281f", "#6b4226", "#6f7276", "#1c1c1e", "#f0efe8"]
THEME = gr.themes.Base(
    primary_hue="blue",
    neutral_hue="slate",
    radius_size="lg",
    font=["system-ui", "sans-serif"],  # those of a web service would have to be fetched
    font_mono=["ui-monospace", "monospace"],
)
CSS = """
.pictures { display: flex; flex-wrap: wrap; gap: 14px; padding-top: 4px; }
.pictures figure { margin: 0; width: 120px; }
.pictures.large figure { width: 256px; max-width: 46%; }
.pictures img { width: 100%; aspect-ratio: 1; border-radius: 8px; display: block; }
.pictures figcaption { margin-top: 6px; font-size: 13px; line-height: 1.4; color: var(--body-text-color); }
.note { font-size: 13px; opacity: 0.7; }
.pictures small { display: block; font-size: 12px; color: var(--body-text-color-subdued); }
"""

pipelines = load_pipelines()


def show(pictures: list[Picture], size: str = "") -> str:
    """Lay pictures beside each other, each with its cost below."""
    figures = ""
    for picture in pictures:
        file = io.BytesIO()
        picture.image.save(file, "png")
        source = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
        title = html.escape(picture.title)
        cost = f"{picture.effective_nfe:.2f} effective NFE<br>{picture.seconds:.2f} s"
        figures += (
            f'<figure><img src="{source}" alt="{title}"><figcaption>{title}<small>{cost}</small></figcaption></figure>'
        )
    return f'<div class="pictures {size}">{figures}</div>'


def say_if_no_image(preprocess):
    """Wrap the `preprocess` of an image editor. (Of a subclass gradio would write an interface file beside this one.)"""

    def checked(payload):
        try:
            return preprocess(payload)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:  # what Pillow raises
            raise gr.Error("The upload cannot be read as an image.", print_exception=False) from error

    return checked


def on_generate(checkpoint, *arguments):
    try:
        return show(generate(pipelines[checkpoint], *arguments), "large")
    except ValueError as error:
        raise gr.Error(str(error), print_exception=False) from error


def on_refine(canvas, checkpoint, *arguments):
    pictures = []
    try:
        for picture in refine(pipelines[checkpoint], canvas and canvas["composite"], *arguments):
            pictures.append(picture)
            yield show(pictures)
    except ValueError as error:
        raise gr.Error(str(error), print_exception=False) from error


def on_checkpoint(checkpoint):
    return [gr.Slider(**setting) for setting in settings(pipelines[checkpoint]).values()]


def on_sketch(number):
    name = list(SKETCHES)[number]
    return Image.open(SKETCHES[name]), name


checkpoints = list(pipelines)
first = pipelines[checkpoints[0]]
names = {"num_inference_steps": "Inference steps", "guidance_scale": "Guidance scale", "noise_ratio": "Noise ratio α"}
steps_between = {"num_inference_steps": 1, "guidance_scale": 0.5, "noise_ratio": 0.05}

with gr.Blocks(title="From coarse to fine", analytics_enabled=False) as demo:
    gr.Markdown(INTRODUCTION)
    with gr.Row():
        with gr.Column(scale=1, min_width=260):
            checkpoint = gr.Radio(checkpoints, value=checkpoints[0], label="Checkpoint")
            class_label = gr.Dropdown([*first.labels, ("any", None)], value="ship", label="Class")
            sliders = [
                gr.Slider(label=names[name], step=steps_between[name], **setting)
                for name, setting in settings(first).items()
            ]
            seed = gr.Number(value=0, precision=0, label="Seed")
        with gr.Column(scale=3, min_width=320):
            with gr.Tab("Generate"):
                generate_button = gr.Button("Generate", variant="primary")
                generated = gr.HTML()
            with gr.Tab("From your own coarse image"):
                canvas = gr.ImageEditor(
                    value=SKETCHES["ship"],
                    type="pil",
                    format="png",
                    label="Paint in colours, or upload an image",
                    sources=["upload", "clipboard"],
                    brush=gr.Brush(default_size=24, colors=COLORS, default_color=COLORS[4]),
                    eraser=gr.Eraser(default_size=24),
                    canvas_size=(256, 256),
                    height=360,
                    layers=False,
                    transforms=[],
                    buttons=[],
                )
                canvas.preprocess = say_if_no_image(canvas.preprocess)
                sketches = gr.Dataset(
                    components=[canvas],
                    samples=[[path] for path in SKETCHES.values()],
                    label="Sketches to start from",
                    type="index",
                )
                refine_button = gr.Button("Add detail", variant="primary")
                refined = gr.HTML()
    gr.Markdown(NOTE, elem_classes="note")

    arguments = [checkpoint, class_label, *sliders, seed]
    # After a large upload the cleared canvas would lie small in a corner
    canvas.clear(lambda: None, None, canvas, api_name=False, show_progress="hidden")
    sketches.click(on_sketch, sketches, [canvas, class_label], api_name=False, show_progress="hidden")
    checkpoint.change(on_checkpoint, checkpoint, sliders, api_name=False, show_progress="hidden")
    # Both use the same pipelines, which hold the state of a call: one call at a time
    once = {"concurrency_limit": 1, "concurrency_id": "pipelines", "show_progress": "minimal"}
    generate_button.click(on_generate, arguments, generated, api_name="generate", **once)
    refine_button.click(on_refine, [canvas, *arguments], refined, api_name="refine", **once)


if __name__ == "__main__":
    demo.launch(theme=THEME, css=CSS, max_file_size="10mb")
