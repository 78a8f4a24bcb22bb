# ruff: noqa: E501 (a file a line)
"""Mixture files with unusual formatting; in each, the weight of data set 1 can be set."""

ODD_FILES = {
    "plain": "name: m\ndatasets:\n  - name: a\n    weight: 1.0\n  - name: b\n    weight: 2.0\n",
    "comments": "# top\nname: m # the name\ndatasets: # rows\n  # a\n  - name: a # A\n    weight: 1.0 # one\n"
    "  # b\n  - name: b # B\n    weight: 2.0 # two\n  # end\n# last\n",
    "no indentation": "name: m\ndatasets:\n- name: a\n  weight: 1\n- name: b\n  weight: 2\n",
    "deep, uneven indentation": "name: m\ndatasets:\n      -     name: a\n            weight: 1\n"
    "      -  name: b\n         weight: 2\n",
    "dash on its own line": "name: m\ndatasets:\n  -\n    name: a\n    weight: 1\n  -   # second\n    name: b\n    weight: 2\n",
    "windows line breaks": "name: m\r\ndatasets:\r\n  - name: a\r\n    weight: 1.0\r\n  - name: b\r\n    weight: 2.0\r\n",
    "old mac line breaks": "name: m\rdatasets:\r  - name: a\r    weight: 1.0\r  - name: b\r    weight: 2.0\r",
    "mixed line breaks": "name: m\r\ndatasets:\n  - name: a\r\n    weight: 1.0\n  - name: b\n    weight: 2.0\r\n",
    "byte order mark": "\ufeffname: m\ndatasets:\n  - name: a\n    weight: 1.0\n  - name: b\n    weight: 2.0\n",
    "mark and windows": "\ufeffname: m\r\ndatasets:\r\n- name: a\r\n  weight: 1\r\n- name: b\r\n  weight: 2 # 🤖\r\n",
    "emoji": "name: m # 🤖🦾\ndatasets:\n  - name: a # 🥄\n    weight: 1.0 # 👍\n  - name: b # 🧽🧽\n    weight: 2.0 # ☕\n",
    "combining and right-to-left": "name: m # e\u0301 שלום\ndatasets:\n  - name: a\n    weight: 1 # עברית\n"
    "  - name: b # ñ\n    weight: 2\n",
    "no break at the end": "name: m\ndatasets:\n  - name: a\n    weight: 1.0\n  - name: b\n    weight: 2.0",
    "trailing spaces": "name: m   \ndatasets:   \n  - name: a   \n    weight: 1.0   \n  - name: b  \n    weight: 2.0  \n\n\n",
    "tabs in comments": "name: m #\ttab\ndatasets:\n  - name: a #\tx\ty\n    weight: 1.0 #\t1\n  - name: b\n"
    "    weight: 2.0 #\t2\n",
    "flow rows": "name: m\ndatasets:\n  - {name: a, weight: 1.0}  # A\n  - { name: b , weight: 2.0 }  # B\n",
    "flow list": "name: m\ndatasets: [{name: a, weight: 1.0}, {name: b, weight: 2.0}]\n",
    "flow list over lines": "name: m\ndatasets: [\n  {name: a, weight: 1.0}, # A\n  {name: b,\n   weight: 2.0}, # B\n]\n",
    "all flow": "{name: m, datasets: [{name: a, weight: 1.0}, {name: b, weight: 2.0}]}\n",
    "json": '{"name": "m", "datasets": [{"name": "a", "weight": 1.0}, {"name": "b", "weight": 2.0}]}\n',
    "quoted keys": "'name': m\n\"datasets\":\n  - 'name': 'a'\n    'weight': 1\n  - \"name\": \"b\"\n    \"weight\": 2\n",
    "weight first": "name: m\ndatasets:\n  - weight: 1\n    name: a\n  - weight: 2\n    name: b\n",
    "datasets first": "datasets:\n  - name: a\n    weight: 1\n  - name: b\n    weight: 2\nname: m\nseed: 3\n",
    "exponents": "name: m\ndatasets:\n  - name: a\n    weight: 1e-3\n  - name: b\n    weight: 2.5E+2\n",
    "signs and underscores": "name: m\ndatasets:\n  - name: a\n    weight: +1\n  - name: b\n    weight: 1_000.5\n",
    "hexadecimal": "name: m\ndatasets:\n  - name: a\n    weight: 0x10\n  - name: b\n    weight: 0x3\n",
    "anchored entry": "name: m\ndatasets:\n  - &one\n    name: a\n    weight: 1.0\n  - &two {name: b, weight: 2.0}\n",
    "anchored weight, unused": "name: m\ndatasets:\n  - name: a\n    weight: 1\n  - name: b\n    weight: &w  2 # w\n",
    "alias elsewhere": "name: m\ndatasets:\n  - name: a\n    weight: &w 1.5\n  - name: b\n    weight: *w # as a\n",
    "merge": "name: m\ndatasets:\n  - &d\n    name: a\n    weight: 1\n  - <<: *d\n    name: b\n    weight: 2\n",
    "tag": "name: m\ndatasets:\n  - name: a\n    weight: !!float 1\n  - name: b\n    weight: !!float 2 # tagged\n",
    "block scalar name": "name: |-\n  m\n# after\ndatasets:\n  - name: >-\n      a\n\n    # between\n    weight: 1\n"
    "  - name: b\n    weight: 2\n",
    "value on the next line": "name: m\ndatasets:\n  - name: a\n    weight:\n      1.0\n  - name: b\n    weight:\n"
    "      # here\n      2.0\n",
    "explicit keys": "? name\n: m\n? datasets\n: - ? name\n    : a\n    ? weight\n    : 1\n  - ? name\n    : b\n"
    "    ? weight\n    : 2\n",
    "document marks": "%YAML 1.1\n---\nname: m\ndatasets:\n  - name: a\n    weight: 1\n  - name: b\n    weight: 2\n...\n",
    "more keys": "name: m\nseed: 7\ndatasets:\n  - name: a\n    weight: 1\n    splits: [train, val]\n  - name: b\n"
    "    splits:\n      - train\n    weight: 2\n    swap_channels: null\nimage:\n  cameras: [primary]\n",
    "no number": "name: m\ndatasets:\n  - name: a\n    weight: 1\n  - name: b\n    weight:\n",
}
