"""An adapter of a third party."""
from osrl_unlearn.adapters.cpq import CPQAdapter


class GentleAdapter(CPQAdapter):
    """Where the parts of a Gentle are: where CPQ's are."""

    name = "thirdparty_gentle"
    trainer_class = "osrl_unlearn_thirdparty.agent:GentleTrainer"
