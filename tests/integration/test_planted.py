"""Defects planted in the service, which the simulation cannot express: the tests for them do catch them."""

from __future__ import annotations

from unittest import mock

import pytest

from natsblob.broker.embedded import EmbeddedServer
from natsblob.service.replies import Replies
from tests.integration import test_service_bad_input as bad_input
from tests.integration.raw import service


async def test_a_worker_that_answers_to_any_subject(server: EmbeddedServer) -> None:
    """It is the deputy of whoever asks, though not for deleting the stream: the tests need that again."""

    def allows(_: Replies, subject: str) -> bool:
        return bool(subject) and "STREAM.DELETE" not in subject

    async with service(server.url) as raw:
        with mock.patch.object(Replies, "allows", allows), pytest.raises(AssertionError):
            await bad_input.test_reply_subjects_that_are_not_answered_to(raw)


async def test_a_worker_that_looks_at_the_beginning_of_a_subject_only(server: EmbeddedServer) -> None:
    async with service(server.url) as raw:
        with (
            mock.patch.object(Replies, "allows", lambda self, subject: subject.startswith("_INBOX")),
            pytest.raises(AssertionError),
        ):
            await bad_input.test_reply_subjects_that_are_not_answered_to(raw)
