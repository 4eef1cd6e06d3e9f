"""Handles the signals that end a command from outside, such as Ctrl-C or a closed terminal.

Python runs a signal's handler between two of its own instructions.  So a program that compiles or
computes in C++ may not see a signal for minutes.  The interpreter writes the signal's number into a
pipe at once (`signal.set_wakeup_fd`), and a thread that reads the pipe sees the signal even then.
"""
import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import NoReturn

__all__ = ['GRACE', 'STOPPING', 'caught', 'ending', 'exit_code', 'leave', 'name', 'say']

# Ctrl-C; the notice that a cluster gives; a terminal that closes.
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
GRACE = 1.0  # seconds for Python's own way out


class _Interrupted(KeyboardInterrupt):
  """The exception of a stopping signal; its argument is the signal's number."""


def name(number: int) -> str:
  return 'Ctrl-C' if number == signal.SIGINT else signal.Signals(number).name


def exit_code(number: int) -> int:
  """The exit code of a process that a signal ended, by the convention of shells."""
  return 128 + number


def leave(code: int) -> NoReturn:
  """Ends the process at once, without the handlers at exit.

  These handlers would wait for processes that wait for this one, or write to a full disk again.
  """
  for each in multiprocessing.active_children():
    each.kill()
  for stream in (sys.stdout, sys.stderr):
    with contextlib.suppress(OSError, ValueError):  # nobody is there to read it
      stream.flush()
  os._exit(code)


def say(text: str) -> None:
  """Prints a line on stderr, if stderr still exists."""
  with contextlib.suppress(OSError, ValueError):
    print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def _heard(handler: Callable, react: Callable[[int], None]) -> Iterator[None]:
  """While the context lasts, stopping signals call `handler` (in Python) and `react` (in a thread).

  `react` is called at once.  A signal that this process was started to ignore, as by nohup, stays
  ignored.  Python gives signals only to the main thread, so the context does nothing elsewhere.
  """
  if threading.current_thread() is not threading.main_thread():
    yield
    return
  handlers = {number: signal.getsignal(number) for number in STOPPING}
  heeded = [number for number, before in handlers.items() if before != signal.SIG_IGN]
  reading, writing = os.pipe()
  os.set_blocking(writing, False)

  def listen():
    while (number := os.read(reading, 1)[0]) != 0:
      if number in heeded:
        react(number)

  listener = threading.Thread(target=listen, daemon=True)
  listener.start()
  before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
  for number in heeded:
    signal.signal(number, handler)
  try:
    yield
  finally:
    for number in heeded:
      signal.signal(number, handlers[number] or signal.SIG_DFL)
    signal.set_wakeup_fd(before)
    os.write(writing, b'\0')
    listener.join()
    os.close(reading)
    os.close(writing)


@contextlib.contextmanager
def caught(reply: str = '') -> Iterator[Callable[[], int]]:
  """A function that returns the number of the stopping signal, or 0 before there is a signal.

  reply: a text that is printed when the signal comes.  A second Ctrl-C ends the process at once.
  """
  received, announced = [], []

  def react(number):
    if announced and number == signal.SIGINT:
      say(f'\n{name(number)} again: ended at once.')  # below a progress bar
      leave(exit_code(number))
    if not announced and reply:
      say(f'\n{name(number)}: {reply}')
    announced.append(number)

  with _heard(lambda number, _: received.append(number), react):
    yield lambda: received[0] if received else 0


@contextlib.contextmanager
def ending(outcome: str) -> Iterator[None]:
  """While the context lasts, a stopping signal ends the process, with one line and an exit code.

  The line ends with `outcome`, and the code is 128 + the signal's number.  The process ends within
  `GRACE`, whatever it is doing.  A second signal ends it at once.
  """
  over, speaking, announced = threading.Event(), threading.Lock(), []

  def end(number, above=''):
    if speaking.acquire(blocking=False):
      say(f'{above}{name(number)}: stopped.  {outcome}')
      leave(exit_code(number))
    threading.Event().wait()  # the other one ends the process

  def react(number):
    announced.append(number)
    if len(announced) == 1:
      threading.Thread(target=lambda: over.wait(GRACE) or end(number, '\n'), daemon=True).start()
    else:
      end(number, '\n')

  def interrupt(number, _):
    raise _Interrupted(number)

  try:
    with _heard(interrupt, react):
      yield
  except _Interrupted as error:
    end(error.args[0])
  finally:
    over.set()
