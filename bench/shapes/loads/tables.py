"""Tables, texts and arrays: made, combined, partly dropped; then it waits."""
import collections, json, random, re, sqlite3, sys, time
import numpy as np
random.seed(1)
words = ["w%d" % random.randrange(5000) for _ in range(60000)]
counts = collections.Counter(words)
text = json.dumps({w: list(range(n % 20)) for w, n in counts.items()})
parsed = json.loads(text); found = re.findall(r"w\d+7", text)
db = sqlite3.connect(":memory:"); db.execute("create table t(a, b)")
db.executemany("insert into t values(?, ?)", enumerate(words)); db.execute("create index i on t(b)")
a = np.random.default_rng(1).random((400, 400)); b = a @ a.T; s = np.linalg.svd(b, compute_uv=False)
v = np.arange(300_000) % 977; h = np.bincount(v); o = np.sort(np.sin(v))
print("ready", len(found), s[0], h.max(), flush=True)
while True: time.sleep(1)
