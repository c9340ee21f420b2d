import re
from pathlib import Path

from setuptools import find_packages, setup


root = Path(__file__).parent
version = re.search(r'__version__ = "(.+)"', (root / "src/diffusers_lowfreq/version.py").read_text())[1]
training = ["accelerate>=1.6", "datasets>=3.2", "pillow", "scipy", "tensorboard", "tqdm"]

setup(
    name="diffusers-lowfreq",
    version=version,
    description="Latent flow models that start from a low-frequency prior, as pipelines and schedulers of diffusers",
    long_description=(root / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    package_dir={"": "src"},
    packages=find_packages("src"),
    package_data={"diffusers_lowfreq": ["py.typed"]},
    install_requires=[
        "diffusers>=0.40,<0.43",
        "huggingface-hub",
        "numpy",
        "packaging",
        "pillow",
        "safetensors>=0.8",
        "torch>=2.6",
    ],
    extras_require={
        "text": ["transformers"],
        "training": [*training, "transformers"],
        "evaluation": ["matplotlib", "scipy"],
        "test": ["hypothesis", "pdoc", "peft>=0.17", "pytest", "pytest-xdist", "ruff"],
    },
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "License :: OSI Approved :: Apache Software License",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
