"""What a judge's endpoint is likely to be asked."""

from paras2s_cli.endpoint.client import count_tokens
from paras2s_cli.endpoint.cost import Estimate, price
from paras2s_cli.endpoint.reply import Usage
from paras2s_cli.judge.endpoint.prompt import REPLY
from paras2s_cli.judge.prompt import FRAME, rubric
from paras2s_cli.recipe.servers import Endpoint

TOKENS_A_SECOND = 4.0
"""Of speech: three words, and a little more."""
TOKENS_A_TONE = 12
TOKENS_OF_A_REPLY = 80


def estimate(endpoint: Endpoint, pairs: int, seconds: float) -> Estimate:
    """Of so many pairs with so many seconds of sound in all."""
    each = count_tokens([rubric(REPLY), " ".join(FRAME)]) + 2 * TOKENS_A_TONE
    usage = Usage(round(pairs * each + seconds * TOKENS_A_SECOND), pairs * min(TOKENS_OF_A_REPLY, endpoint.max_tokens))
    return Estimate(pairs, usage.tokens_in, usage.tokens_out, price(endpoint, usage))
