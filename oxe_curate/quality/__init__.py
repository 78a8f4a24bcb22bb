"""Judge episodes: pure functions over the numbers, texts and looked-at frames of many episodes of one data set."""
