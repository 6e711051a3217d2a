"""The page of `stgt search --html`: the clips that were found, playable where the browser knows their format."""

import base64
import html
import os
import urllib.parse
from collections.abc import Sequence
from pathlib import Path

import cv2

from stgt_jax.errors import STGTError
from stgt_jax.search import Hit, Index

_STYLE = (
    "body{font-family:sans-serif;margin:2em;color:#222} main{display:flex;flex-wrap:wrap;gap:1.5em} "
    "figure{width:20em;margin:0} video{width:20em;height:15em;background:#222;object-fit:contain} "
    "figcaption{font-size:.9em;overflow-wrap:anywhere} .row{color:#666;font-size:.85em}"
)


def write_search_page(path: str | Path, index: Index, text: str, hits: Sequence[Hit]) -> None:
    """Writes the page. It refers to the videos by paths relative to its own folder, and holds a picture of each clip.

    Args:
      path: of the HTML file.
      index: that was searched.
      text: that was searched for.
      hits: the clips, best first.
    """
    here = Path(path).absolute().parent
    here.mkdir(parents=True, exist_ok=True)
    figures = "".join(_figure(rank, hit, index, here) for rank, hit in enumerate(hits, 1))
    title = html.escape(text)
    page = (
        f"<!doctype html><html lang='en'><meta charset='utf-8'><title>{title}</title><style>{_STYLE}</style>"
        f"<h1>{title}</h1><p class='row'>{len(hits)} of {index.store.num_clips} clips in"
        f" {html.escape(str(index.folder))}</p><main>{figures or 'no clips'}</main></html>"
    )
    Path(path).write_text(page, encoding="utf-8")


def _figure(rank: int, hit: Hit, index: Index, here: Path) -> str:
    relative = os.path.relpath(index.folder / hit.path, here)
    address = f"{urllib.parse.quote(relative)}#t={hit.start:g},{hit.end:g}"
    match = "" if hit.match is None else f", P(match) {hit.match:.3f}"
    return (
        f"<figure><video controls preload='metadata' src='{html.escape(address)}'{_poster(hit, index)}></video>"
        f"<figcaption>{rank}. <a href='{html.escape(address)}'>{html.escape(hit.path)}</a>"
        f" {hit.start:.1f}-{hit.end:.1f} s"
        f"<div class='row'>score {hit.score:.3f}: similarity {hit.similarity:.3f}{match}</div></figcaption></figure>"
    )


def _poster(hit: Hit, index: Index) -> str:
    """The attribute with the picture that stands in the place of the clip until it plays."""
    try:
        frames = index.read(hit)
    except STGTError:  # the file is gone since
        return ""
    picture = cv2.imencode(".jpg", frames[len(frames) // 2][..., ::-1])[1].tobytes()
    return f" poster='data:image/jpeg;base64,{base64.b64encode(picture).decode()}'"
