"""`stgt search`."""

from experiments.commands.values import Figures, File


def search(
    index: str,  # folder of the index, from `stgt index`
    text: str,  # what to look for
    *,
    count: int = 10,  # clips to show
    rerank: int = 16,  # best clips that are re-ranked by matching; 0 for none
    html: File | None = None,  # also write a page with the clips, to look at in a browser
) -> Figures:
    """Find the clips in an index that fit a text best, with their times in their files.

    The text is compared with every clip. The best ones are read again and re-ranked by similarity plus P(match).
    """
    import dataclasses

    import stgt_jax as stgt
    from experiments.tables import format_table

    found = stgt.load_index(index)
    hits = found.search(text, count=count, rerank=rerank)
    rows = [
        {
            "rank": str(rank),
            "score": f"{hit.score:.3f}",
            "similarity": f"{hit.similarity:.3f}",
            "P(match)": "" if hit.match is None else f"{hit.match:.3f}",
            "seconds": f"{hit.start:.1f}-{hit.end:.1f}",
            "file": hit.path,
        }
        for rank, hit in enumerate(hits, 1)
    ]
    print(format_table(rows, left=("file",)) if rows else f"{index} holds no clips")
    if html:
        from experiments.search_page import write_search_page

        write_search_page(html, found, text, hits)
        print(f"\n{html}: the clips, to look at in a browser")
    return {"text": text, "folder": str(found.folder), "hits": [dataclasses.asdict(hit) for hit in hits]}
