"""A ComfyUI that was started anew so soon that nobody saw it away."""

from __future__ import annotations

from comfyfleet.client.remote import RemoteRunner
from tests.client.hostile import Hostile, play, run_unit


def test_one_that_has_lost_the_last_prompt_was_started_anew() -> None:
    async def work(comfyui: Hostile, runner: RemoteRunner) -> list[bool]:
        said = [await runner.is_anew()]
        await run_unit(comfyui, runner)
        said.append(await runner.is_anew())
        comfyui.prompts.clear()
        return [*said, await runner.is_anew(), await runner.is_anew()]

    comfyui = Hostile()
    assert play(comfyui, work) == [False, False, True, False]
    assert comfyui.visits[-1] == "HEAD /history/mine", "of which nothing is sent but its size"
