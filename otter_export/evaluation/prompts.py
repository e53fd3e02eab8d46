"""The prompts that ``otter-export verify`` uses unless it is given others."""

#: Varied on purpose: prose, facts, code, dialogue, numbers, another language, symbols, markup.
PROMPTS = (
    "The film was slow at first, but by the last scene I did not want it to end. What stayed with",
    "Water boils at a lower temperature on a mountain because the pressure of the air is",
    "def mean(values):\n    total = 0\n    for value in values:\n        total +=",
    "<|im_start|>user\nGive me three tips for a better night's sleep.<|im_end|>\n"
    "<|im_start|>assistant\n",
    "2, 3, 5, 7, 11, 13, 17, 19, 23,",
    "Le petit port dormait encore quand les premiers bateaux sont",
    "Café menu: espresso €2.10, æbleskiver €4.50 \U0001f370, té €",
    '{"name": "Ada", "born": 1815, "fields": ["mathematics", "',
)
