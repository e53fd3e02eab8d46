"""L1: rows of projections, read alone or found in their file, of every family."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from otter_export.base_model import BaseModel
from otter_export.safetensors_io import WEIGHT_DTYPES, to_float32
from tests.families import bases


@pytest.mark.parametrize("case", bases.CASES, ids=lambda case: case.name)
def test_rows_of_a_projection(case: bases.Case, tmp_path: Path) -> None:
    base = BaseModel.open(bases.write_base(case, tmp_path / "base"))
    for site in base.sites.projections:
        whole = base.projection(site)
        for rows in (slice(0, 3), slice(2, 7), slice(5, len(whole))):
            np.testing.assert_array_equal(base.projection(site, rows), whole[rows])
        info = base.stored_projection(site)
        if info is None:
            assert site.transposed or site.head is not None
            continue
        bits = np.fromfile(
            info.file, WEIGHT_DTYPES[info.dtype], whole.size, offset=info.begin
        ).reshape(info.shape)
        np.testing.assert_array_equal(to_float32(bits, info.dtype), whole)
        assert info.nbytes == bits.nbytes
