"""The built-in upstream: OpenAI, Anthropic and Mistral as far as a proxy can tell, for demos, tests and load."""

from proxy.mock.options import Fault, MockOptions
from proxy.mock.server import MockUpstream, RecordedRequest, key_of

__all__ = ["Fault", "MockOptions", "MockUpstream", "RecordedRequest", "key_of"]
