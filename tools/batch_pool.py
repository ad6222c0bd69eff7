"""The jobs of a batch on one or several running ComfyUI servers: who takes which, and what becomes of those that a server did not run."""

import asyncio
import sys
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import aiohttp
from tqdm import tqdm

from .batch_jobs import Job, Report, run_job
from .comfyui_client import PictureFailed, Refused, Server, ServerFaulty, ServerLost
from .prompt import BatchError, Prompt

# A job is tried again so often where nothing says that its picture is at fault.
MOST_ATTEMPTS = 2
# A server that fails so often in a row gets no more.
MOST_FAILURES = 3


@dataclass
class Pot:
    """The jobs still to do, and the servers that take them (their URLs).

    A job that was handed out counts until it is finished, because a failing server's comes back. A server gets a job that it could not
    run only when no other is left to try.
    """

    waiting: deque[Job]
    servers: set[str]
    in_flight: int = 0
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    def untried(self, job: Job) -> set[str]:
        """Servers that have not had the job yet."""
        return self.servers - job.tried

    def _next(self, url: str) -> Job | None:
        return next((job for job in self.waiting if url not in job.tried or not self.untried(job)), None)

    async def take(self, url: str) -> Job | None:
        """The next job for a server; None when nothing is left and nothing can come back."""
        async with self.changed:
            await self.changed.wait_for(lambda: self._next(url) or not (self.waiting or self.in_flight))
            if job := self._next(url):
                self.in_flight += 1
                self.waiting.remove(job)
            return job

    async def settle(self, again: Job | None = None, gone: str | None = None) -> None:
        """Ends a job that was taken; `again` goes back into the pot. gone: a server that takes no more."""
        async with self.changed:
            self.in_flight -= 1
            if again:
                self.waiting.append(again)
            self.servers.discard(gone or "")
            self.changed.notify_all()


async def run_batch(prompt: Prompt, target: tuple[str, str] | None, jobs: Iterable[Job], urls: Sequence[str], bar: tqdm) -> Report:
    """Runs all jobs on the servers that answer. Raises BatchError if none does."""
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=15, sock_read=600)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        servers = [Server(session, url) for url in urls]
        answers = await asyncio.gather(*(server.is_alive() for server in servers))
        for server, alive in zip(servers, answers, strict=True):
            if not alive:
                bar.write(f"{server.url} does not answer as ComfyUI does: it gets no pictures", file=sys.stderr)
        ready = [server for server, answer in zip(servers, answers, strict=True) if answer]
        if not ready:
            raise BatchError(f"no ComfyUI answers at {', '.join(urls)}: start one, or name it with --server.")
        report, pot = Report(), Pot(deque(jobs), {server.url for server in ready})
        await asyncio.gather(*(_work(server, prompt, target, pot, report, bar) for server in ready))
    report.left = list(pot.waiting)
    return report


async def _work(server: Server, prompt: Prompt, target: tuple[str, str] | None, pot: Pot, report: Report, bar: tqdm) -> None:
    """Takes jobs until none is left, the server is gone, or it has failed too often in a row."""
    failures = 0
    while job := await pot.take(server.url):
        again, gone, reason = False, False, ""
        try:
            await run_job(server, prompt, target, job, lambda text: bar.set_postfix_str(text))
            report.done.append(job)
            failures = 0
        except Refused as error:
            reason = str(error)
            job.tried.add(server.url)
            again = bool(pot.untried(job))
            failures = failures + 1 if again else 0
        except PictureFailed as error:
            reason, failures = str(error), 0
        except (ServerFaulty, TimeoutError, asyncio.TimeoutError) as error:
            reason = str(error) or f"{server.url} did not answer in time"
            job.tried.add(server.url)
            job.attempts += 1
            again = bool(pot.untried(job)) or job.attempts < MOST_ATTEMPTS
            failures += 1
        except (ServerLost, aiohttp.ClientError, ConnectionError) as error:
            gone = not await server.is_alive()
            job.tried.add(server.url)
            job.lost += 1
            # A picture that takes a server down with it must not go round all of them.
            again = job.lost < MOST_ATTEMPTS
            reason = f"the connection was lost {job.lost} times while it ran: {error}"
            failures += 1
            if gone:
                bar.write(f"{server.url} is gone ({error}): its pictures go to the others", file=sys.stderr)
        finally:
            too_often = failures >= MOST_FAILURES and not gone
            await pot.settle(job if again else None, server.url if gone or too_often else None)
        if reason and not again:
            report.failed.append((job, reason))
            bar.write(f"{job}: {reason}", file=sys.stderr)
        bar.update(0 if again else 1)
        if too_often:
            bar.write(f"{server.url} failed {failures} times in a row and gets no more pictures: {reason}", file=sys.stderr)
        if gone or too_often:
            return
