"""An application with the OpenAI SDK as it always is: the proxy is in its environment, not in its code."""

import signal
import sys
import time

from openai import OpenAI, OpenAIError


def main() -> int:
    """Ask the same question every ten seconds, until the pod ends."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    client = OpenAI()
    while True:
        try:
            stream = client.chat.completions.create(
                model="gpt-4o-mini",
                messages=[{"role": "user", "content": "Say in one sentence why equal requests need one answer."}],
                stream=True,
            )
            for chunk in stream:
                for choice in chunk.choices:
                    print(choice.delta.content or "", end="", flush=True)
            print(flush=True)
        except OpenAIError as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        time.sleep(10)


if __name__ == "__main__":
    sys.exit(main())
