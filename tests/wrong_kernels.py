"""Builds of llama.cpp with one kernel made wrong on purpose.

A build is the installed one's libraries with another ``libggml-cpu`` in front of its own: it
defines the function of one operation, calls the right one, and then spoils the result. The loader
finds it first, because it stands before the right one among the libraries that libggml needs.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

_CPU = "libggml-cpu.so.0"
_BEHIND = "libggml-cpx.so.0"  # of the same length: it is written into the library

_SOURCE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <math.h>
#include "ggml.h"
struct ggml_compute_params;

static void spoil(struct ggml_tensor * d) {
    if (d->type != GGML_TYPE_F32 || !(WHEN)) return;
    for (int64_t i3 = 0; i3 < d->ne[3]; i3++)
    for (int64_t i2 = 0; i2 < d->ne[2]; i2++)
    for (int64_t i1 = 0; i1 < d->ne[1]; i1++)
    for (int64_t i0 = 0; i0 < d->ne[0]; i0++) {
        float * x = (float *) ((char *) d->data
            + i0*d->nb[0] + i1*d->nb[1] + i2*d->nb[2] + i3*d->nb[3]);
        *x = FAULT;
    }
}

#if defined(FUSED)
typedef struct ggml_tensor tensor;
typedef void (*run)(const struct ggml_compute_params *, tensor *, tensor *);
void FUNCTION(const struct ggml_compute_params * p, tensor * n, tensor * d) {
    ((run) dlsym(RTLD_NEXT, NAME))(p, n, d);
    spoil(d);
}
#elif defined(GRAPH)
typedef enum ggml_status (*run)(struct ggml_cgraph *, void *);
int ggml_graph_n_nodes(struct ggml_cgraph *);
struct ggml_tensor * ggml_graph_node(struct ggml_cgraph *, int);
enum ggml_status FUNCTION(struct ggml_cgraph * graph, void * plan) {
    enum ggml_status status = ((run) dlsym(RTLD_NEXT, NAME))(graph, plan);
    if (ggml_graph_n_nodes(graph) > 20) spoil(ggml_graph_node(graph, -1));
    return status;
}
#else
typedef void (*run)(const struct ggml_compute_params *, struct ggml_tensor *);
void FUNCTION(const struct ggml_compute_params * p, struct ggml_tensor * d) {
    ((run) dlsym(RTLD_NEXT, NAME))(p, d);
    spoil(d);
}
#endif
"""


@dataclass(frozen=True)
class Fault:
    """What is wrong, in C; ``d`` is the operation's result.

    Attributes:
        function: of ggml-cpu, whose result is spoiled.
        when: a condition on ``d``.
        value: what stands there instead of the value ``*x``.
        kind: "FUSED" for a function of two operations, "GRAPH" for a whole graph's.
    """

    function: str
    when: str = "1"
    value: str = "*x * 1.1f"
    kind: str | None = None


def installed_libraries() -> Path:
    """The folder of llama-cpp-python's libraries."""
    spec = importlib.util.find_spec("llama_cpp")
    assert spec
    assert spec.origin
    return Path(spec.origin).parent / "lib"


def wrong_build(folder: Path, fault: Fault) -> Path:
    """Make a build with that fault, or skip the test where none can be made."""
    libraries, compiler = installed_libraries(), shutil.which("cc")
    headers = libraries.parents[1] / "include"
    if not sys.platform.startswith("linux"):
        pytest.skip("a library that stands in for another is put together for Linux's loader only")
    if compiler is None:
        pytest.skip("there is no C compiler to make a wrong kernel with")
    if not (headers / "ggml.h").is_file() or not (libraries / _CPU).is_file():
        pytest.skip("the installed llama.cpp has no ggml.h, or its CPU backend is no library")
    folder.mkdir()
    for path in libraries.glob("*.so*"):
        if "cpu" not in path.name:
            shutil.copyfile(path, folder / path.name)
    right = (libraries / _CPU).read_bytes()
    named, other = (name.encode() + b"\0" for name in (_CPU, _BEHIND))
    assert right.count(named) == 1
    (folder / _BEHIND).write_bytes(right.replace(named, other))
    source = folder / "fault.c"
    source.write_text(_SOURCE)
    defined = {
        "FUNCTION": fault.function,
        "NAME": f'"{fault.function}"',
        "WHEN": fault.when,
        "FAULT": fault.value,
        **({fault.kind: "1"} if fault.kind else {}),
    }
    command = [
        compiler, "-O1", "-fPIC", "-shared", f"-I{headers}", str(source), "-o", str(folder / _CPU),
        *(f"-D{name}={value}" for name, value in defined.items()), f"-Wl,-soname,{_CPU}",
        "-Wl,-rpath,$ORIGIN", "-Wl,--no-as-needed", str(folder / _BEHIND),
        str(folder / "libggml-base.so.0"), "-lm",
    ]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    return folder
