"""`stgt weights push`."""

from experiments.commands.values import Figures


def weights_push(
    model: str,  # folder of a training (its newest checkpoint counts), of one checkpoint, or of a model
    repo: str,  # ORGANISATION/NAME on the Hugging Face Hub
    *,
    licence: str = "",  # its name on the Hub, as apache-2.0; needed for weights of other projects: theirs
    private: bool = False,  # create the repository as a private one
) -> Figures:
    """Upload a model to the Hugging Face Hub, with a model card.

    `stgt_jax.load("hf://ORGANISATION/NAME")` loads it. Log in with `hf auth login` first.
    """
    from stgt_jax.hub import push_to_hub

    page = push_to_hub(model, repo, licence=licence, private=private)
    print(page)
    return {"page": page}
