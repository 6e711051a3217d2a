"""The attention patterns of the Q-Former, written out as in the paper's Figure 2."""

import jax.numpy as jnp
import numpy as np

from stgt_jax.models.qformer import generation_mask, matching_mask, unimodal_mask

# Two captions of three positions, the second one a token shorter; two queries.
ATTENTION_MASK = jnp.array([[1, 1, 1], [1, 1, 0]])
QUERIES = 2


def test_unimodal_text_sees_text_without_padding() -> None:
    seen = np.broadcast_to(unimodal_mask(ATTENTION_MASK), (2, 1, 3, 3)).astype(int)
    np.testing.assert_array_equal(seen[0, 0], [[1, 1, 1]] * 3)
    np.testing.assert_array_equal(seen[1, 0], [[1, 1, 0]] * 3)


def test_matching_queries_and_text_see_all_but_padding() -> None:
    seen = np.broadcast_to(matching_mask(ATTENTION_MASK, QUERIES), (2, 1, 5, 5)).astype(int)
    np.testing.assert_array_equal(seen[0, 0], [[1, 1, 1, 1, 1]] * 5)
    np.testing.assert_array_equal(seen[1, 0], [[1, 1, 1, 1, 0]] * 5)


def test_generated_text_sees_queries_and_no_later_text() -> None:
    seen = np.asarray(generation_mask(ATTENTION_MASK, QUERIES)).astype(int)
    np.testing.assert_array_equal(seen[0, 0], [[1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 1]])
    np.testing.assert_array_equal(seen[1, 0], [[1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 0]])
