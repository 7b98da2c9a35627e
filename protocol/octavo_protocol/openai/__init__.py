"""OpenAI wire types: requests as the router and every replica parse them, and answers."""

from octavo_protocol.openai.base import GenerationRequest as GenerationRequest
from octavo_protocol.openai.base import StreamOptions as StreamOptions
from octavo_protocol.openai.base import validation_error as validation_error
from octavo_protocol.openai.chat import ChatCompletionRequest as ChatCompletionRequest
from octavo_protocol.openai.completions import CompletionRequest as CompletionRequest
from octavo_protocol.openai.messages import ChatMessage as ChatMessage
from octavo_protocol.openai.pooling import ClassifyRequest as ClassifyRequest
from octavo_protocol.openai.pooling import EmbeddingRequest as EmbeddingRequest
from octavo_protocol.openai.pooling import PoolRequest as PoolRequest
from octavo_protocol.openai.responses import ResponsesRequest as ResponsesRequest
from octavo_protocol.openai.scoring import RerankRequest as RerankRequest
from octavo_protocol.openai.scoring import ScoreRequest as ScoreRequest
from octavo_protocol.openai.tokenize import DetokenizeRequest as DetokenizeRequest
from octavo_protocol.openai.tokenize import TokenizeRequest as TokenizeRequest
