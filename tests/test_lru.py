"""The cache of the values used last."""

from oxe_curate.lru import LruCache


def test_the_cache_forgets_what_was_used_longest_ago():
    made = []
    cache: LruCache[str] = LruCache(2)

    def get(key):
        return cache.get(key, lambda: (made.append(key) or key, 1))

    for key in "abacab":
        assert get(key) == key
    assert made == ["a", "b", "c", "b"]
