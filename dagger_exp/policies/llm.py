"""A policy that is a language model: prompt token ids to an engine, its tokens back as a message."""

from __future__ import annotations

from dataclasses import dataclass

from dagger_exp.chat import Chat
from dagger_exp.protocols import Engine, Env, Sampling
from dagger_exp.types import Response, State


@dataclass(frozen=True, kw_only=True)
class LanguagePolicy:
    """Samples a response from an engine.

    Args:
        engine: generates the tokens.
        chat: reads the tokens as a message.
        max_new_tokens: longest response, in tokens.
        temperature: 0 is greedy.
        top_p: nucleus; 1 keeps every token.
        id: name under which the policy is recorded.
    """

    engine: Engine
    chat: Chat
    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    id: str = "student"

    async def act(self, state: State, env: Env) -> Response:
        sampling = Sampling(self.max_new_tokens, self.temperature, self.top_p, state.key)
        generation = await self.engine.generate(state.prompt_ids, sampling)
        return Response(
            message=self.chat.parse(generation.token_ids),
            token_ids=generation.token_ids,
            logprobs=generation.logprobs,
            finish_reason=generation.finish_reason,
            policy_version=generation.policy_version,
        )
