"""Texts that byte-level tokenizers are known to stumble over, by kind."""

TEXTS = {
    "emoji": "a \U0001f642 b \U0001f469\u200d\U0001f469\u200d\U0001f467 c \U0001f44d\U0001f3fd \U0001f1e9\U0001f1ea",
    "combining marks": "e\u0301 o\u0308\u0323 n\u0303 \u0915\u094d\u0937 Z\u0334\u0358\u033a\u0347\u0301 \u1e9b\u0323",
    "composed": "\u00e9 \u00f6 \u00f1 \u1ea5 \u212b \u2126 \ufb01",
    "digits": "1234567890 12,345.678 3.14159 1e-10 \u0661\u0662\u0663 \u00b2\u00b3 \u2460 007",
    "long blanks": f"a{' ' * 300}b{chr(9) * 40}c{chr(10) * 60}d\r\n\r\n{'  ' * 7}\n e",
    "odd blanks": "a\u00a0b\u2003c\u200bd\u3000e\u2028f\u0085g",
    "cjk": "\u6c42 x \u7684\u503c\u3002\u3072\u3089\u304c\u306a\ud55c\uae00\u1112\u1161\u11ab",
    "right to left": "\u05d0\u05d1\u05d2 12 \u0627\u0644\u0639\u0631\u0628\u064a\u0629\u200f!",
    "mathematics": r"\boxed{\frac{1}{2}} \u222b\u2211 x\u00b2 \u2260 \u2282 $a_1^{2n}$ \U0001d465\U0001d7d9",
    "code": "def f(x):\n\treturn x**2  # don't\n```py\nassert f(3)==9;\n```\n",
    "control characters": "a\x00b\x01c\x07d\x1be\x7ff\ufeffg",
    "beyond the basic plane": "\U00020000\U0002a6d6 \U00010348 \U000e0001 \U0010ffff",
    "private and unassigned": "\ue000\uf8ff \ufffd \ufffe\uffff \u0378",
    "marks that are none": "< |im_end|> <|im_end |> <|IM_END|> <|im_end|\u200b> <|end|> <s> [INST] <image>",
    "tags": "<think>so</think> <tool_response> </think",
}
