"""The vocabulary of the synthetic world: word lists, nothing else.

The lists that carry an ingredient (names, kinds, objects, places, moods, events) share no word with each other nor
with the sentence forms, so that finding the word in a text is finding the ingredient (tests/sandbox/test_world.py).
"""


def _list(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def _phrases(text: str) -> tuple[str, ...]:
    return tuple(" ".join(phrase.split()) for phrase in text.split(","))


SHE_NAMES = _list("Mia Ella Ruby Nora")
HE_NAMES = _list("Otto Finn Max Leo")
NAMES = SHE_NAMES + HE_NAMES

KINDS = _list("fox owl bear cat frog wolf eagle hen")

OBJECTS = _list("lantern drum kite bell map candle apple umbrella")

PLACES = _list("harbor forest mill bridge castle garden island barn")

# A prompt names the mood; a story shows it through one of these other words.
MOODS = {
    "happy": ("glad", "cheerful", "merry", "joyful"),
    "sad": ("gloomy", "tearful", "unhappy", "sorry"),
    "angry": ("cross", "furious", "grumpy", "mad"),
    "calm": ("peaceful", "quiet", "gentle", "relaxed"),
}

# What a character does: as a prompt says it, and as a story tells it.
EVENTS = {
    "sings": "sang",
    "dances": "danced",
    "digs": "dug",
    "swims": "swam",
    "climbs": "climbed",
    "paints": "painted",
    "reads": "read",
    "dreams": "dreamed",
}

LENGTHS = {"three": 3, "five": 5}

# Words that only colour a sentence.
THING_ADJECTIVES = _list(
    """tiny golden red blue heavy broken shiny wooden silver green odd empty round yellow smooth dusty purple striped
    huge plain curly fancy narrow thick pink orange brown spotted rusty secret precious crooked"""
)
FRIEND_ADJECTIVES = _list(
    """young wise clever friendly hungry old polite lonely funny brave lively modest honest patient sweet shy noisy busy
    sleek chubby elderly lucky"""
)
WENT = _list("went walked hurried wandered came rode sailed crept strolled raced drove marched")
FOUND = _list(
    "found saw got held kept wanted bought lost noticed spotted carried borrowed chose dropped fetched grabbed picked"
)
NEAR = _list("near at by behind beside")
SKY = _list("sun moon wind sky rain snow sea fog air sunset thunder breeze cloud storm water grass")
WEATHER = _list(
    """cold warm bright soft clear grey dark mild fresh pale wild icy damp hazy stormy windy pleasant frosty lovely
    terrible"""
)
TIMES = _phrases(
    """one morning, one day, one evening, one night, at noon, in spring, in winter, long ago, last summer, on Monday,
    at dawn, this autumn, around midnight, during lunch, yesterday, once, after school, late that week"""
)
HOW = _phrases(
    """for a while, all day, with care, by the fire, very slowly, again, until supper, without stopping, as usual,
    near some bushes, in silence, for hours, with joy, twice"""
)
WHERE = _phrases(
    """under a tree, in the grass, on a rock, by the gate, in a box, inside an old chest, among the leaves, upon a wall,
    next to the path, between two rocks, above the door, inside its nest, beneath those roots, across that stream"""
)
