"""Exports with one wrong tensor are refused in every precision."""

import json

import pytest
import torch
from export_models import GPT2
from naming import naming

from align.export import write_export
from align.export.export_settings import ExportSettings
from align.export.gguf_file import FILE, write_gguf
from align.export.safetensors_dir import write_hf
from align.export.source import open_source
from align.export.verify import Compared, check, verify
from align.export.write_export import Check, export
