"""The vocabulary of the synthetic world: word lists, nothing else.

The lists that carry an ingredient (names, kinds, objects, places, moods, events) share no word with each other nor
with the sentence forms, so that finding the word in a text is finding the ingredient (tests/sandbox/test_world.py).
"""


def _list(text: str) -> tuple[str, ...]:
    return tuple(text.split())


SHE_NAMES = _list("Mia Ella Ruby Nora Lily Tess Ivy Anna Zoe Rosa Cleo Dora")
HE_NAMES = _list("Otto Finn Max Leo Hugo Sam Theo Ben Jack Oscar Toby Rex")
NAMES = SHE_NAMES + HE_NAMES

KINDS = _list(
    """fox owl bear cat dog mouse frog rabbit goat duck wolf hen pig deer mole crow turtle lion tiger snail otter
    badger sheep eagle"""
)

OBJECTS = _list(
    """lantern drum kite key bell map rope hat cake ring boat basket mirror ladder whistle blanket candle shell book
    cup apple umbrella anchor egg coin crown feather flute hammer jar letter lamp pearl pillow scarf spoon stone sword
    ticket wheel"""
)

PLACES = _list(
    """harbor forest mill river bridge castle market garden cave meadow tower island beach barn lake school farm
    valley desert pond hill village attic cellar library station bakery temple tunnel orchard"""
)

# A prompt names the mood; a story shows it through one of these other words.
MOODS = {
    "happy": ("glad", "cheerful", "merry", "joyful"),
    "sad": ("gloomy", "tearful", "unhappy", "sorry"),
    "angry": ("cross", "furious", "grumpy", "mad"),
    "scared": ("afraid", "nervous", "shaky", "timid"),
    "proud": ("bold", "noble", "grand", "mighty"),
    "calm": ("peaceful", "quiet", "gentle", "relaxed"),
    "tired": ("sleepy", "weary", "drowsy", "weak"),
    "curious": ("eager", "puzzled", "keen", "nosy"),
}

# What a character does: as a prompt says it, and as a story tells it.
EVENTS = {
    "sings": "sang",
    "dances": "danced",
    "digs": "dug",
    "swims": "swam",
    "climbs": "climbed",
    "jumps": "jumped",
    "runs": "ran",
    "cooks": "cooked",
    "paints": "painted",
    "reads": "read",
    "writes": "wrote",
    "hides": "hid",
    "waits": "waited",
    "fishes": "fished",
    "rests": "rested",
    "sneezes": "sneezed",
    "eats": "ate",
    "drinks": "drank",
    "counts": "counted",
    "sweeps": "swept",
    "yawns": "yawned",
    "waves": "waved",
    "shouts": "shouted",
    "rolls": "rolled",
    "slides": "slid",
    "works": "worked",
    "plays": "played",
    "marches": "marched",
    "hums": "hummed",
    "dreams": "dreamed",
}

LENGTHS = {"three": 3, "four": 4, "five": 5}

# Words that only colour a sentence.
THING_ADJECTIVES = _list("tiny golden red blue heavy broken shiny wooden silver green odd empty")
FRIEND_ADJECTIVES = _list("young wise clever friendly hungry old")
WENT = _list("went walked hurried wandered came rode")
FOUND = _list("found saw got held kept wanted bought lost")
NEAR = _list("near at by behind beside")
SKY = _list("sun moon wind sky rain snow sea fog")
WEATHER = _list("cold warm bright soft clear grey dark mild")
TIMES = ("one morning", "one day", "one evening", "one night", "at noon", "in spring", "in winter", "long ago")
HOW = ("for a while", "all day", "with care", "by the fire", "very slowly", "again")
WHERE = ("under a tree", "in the grass", "on a rock", "by the gate", "in a box")
