"""Everyday instructions, written for this project: topics in several task forms, and messages to write.

A topic belongs to one split, whatever the seed, so that no two splits share an instruction.
"""

from random import Random

from align.sandbox.constraints.constraint import Request
from align.sandbox.world import pick

Split = str
"""``train``, ``validation`` or ``test``"""

ACTIVITY_FORMS = (
    "Give some brief advice on {topic}.",
    "Explain in a few words what a beginner should know about {topic}.",
    "Name a common mistake that people make when {topic}.",
    "Briefly tell me how you would go about {topic}.",
    "Write a short and encouraging note to someone who is {topic} for the first time.",
)
THING_FORMS = (
    "Briefly describe {topic} to someone who has never seen one.",
    "Explain briefly why people like {topic}.",
    "Write a very short story about {topic}.",
    "Write a slogan for a poster that shows {topic}.",
    "Name a few things that come to mind when you think of {topic}.",
    "Tell me one interesting thing about {topic}.",
)
"""Both ask for short responses, as rollouts of a few dozen tokens are what a laptop can afford."""

ACTIVITIES: dict[str, tuple[str, ...]] = {
    "packing a suitcase": ("clothes", "space", "list", "shoes"),
    "learning to swim": ("water", "breathe", "pool", "practice"),
    "saving money": ("budget", "spend", "month", "goal"),
    "cooking rice": ("water", "pot", "heat", "salt"),
    "growing tomatoes": ("sun", "soil", "water", "plant"),
    "studying for an exam": ("notes", "time", "rest", "topic"),
    "riding a bicycle in traffic": ("helmet", "road", "careful", "lane"),
    "cleaning a kitchen": ("sink", "wipe", "dishes", "floor"),
    "making new friends": ("listen", "smile", "talk", "kind"),
    "training a puppy": ("treat", "patience", "walk", "reward"),
    "moving to a new flat": ("boxes", "neighbours", "rent", "keys"),
    "speaking in front of a group": ("voice", "audience", "practice", "nervous"),
    "baking bread": ("flour", "dough", "oven", "yeast"),
    "planning a birthday party": ("guests", "cake", "music", "date"),
    "getting enough sleep": ("bed", "night", "screen", "dark"),
    "repairing a flat tyre": ("wheel", "tube", "pump", "tools"),
    "writing a thank-you letter": ("gift", "sincere", "name", "words"),
    "looking after houseplants": ("light", "water", "leaves", "pot"),
    "taking better photographs": ("light", "camera", "focus", "angle"),
    "going on a long hike": ("boots", "water", "map", "weather"),
    "choosing a present for a friend": ("taste", "budget", "surprise", "thoughtful"),
    "sharing a home with others": ("rules", "clean", "respect", "space"),
    "reading more books": ("time", "habit", "library", "page"),
    "preparing for a job interview": ("company", "questions", "clothes", "confident"),
    "using less plastic": ("bag", "bottle", "recycle", "shop"),
    "camping in the rain": ("tent", "dry", "boots", "warm"),
    "teaching a child to read": ("letters", "story", "patience", "aloud"),
    "starting a small garden": ("soil", "seeds", "water", "sun"),
    "driving in the snow": ("slow", "brake", "tyres", "distance"),
    "learning a new language": ("words", "practice", "listen", "speak"),
    "keeping a diary": ("day", "write", "thoughts", "honest"),
    "shopping for groceries": ("list", "fresh", "price", "vegetables"),
    "painting a room": ("brush", "colour", "wall", "tape"),
    "staying warm in winter": ("coat", "wool", "tea", "layers"),
    "travelling by train": ("ticket", "seat", "window", "station"),
    "saying sorry": ("mistake", "honest", "listen", "feelings"),
}
THINGS: dict[str, tuple[str, ...]] = {
    "a lighthouse": ("sea", "light", "ships", "tower"),
    "a rainy afternoon": ("window", "clouds", "quiet", "umbrella"),
    "a village market": ("fruit", "people", "fresh", "morning"),
    "an old bicycle": ("wheels", "rust", "ride", "chain"),
    "a public library": ("books", "quiet", "shelves", "learn"),
    "a snowman": ("snow", "carrot", "winter", "hat"),
    "a wooden boat": ("water", "river", "oars", "sail"),
    "a bakery": ("bread", "smell", "warm", "cake"),
    "a black cat": ("eyes", "night", "fur", "quiet"),
    "a mountain lake": ("water", "clear", "peaks", "cold"),
    "a piano": ("music", "keys", "notes", "play"),
    "a street festival": ("music", "dance", "crowd", "lights"),
    "an umbrella": ("rain", "dry", "open", "handle"),
    "a campfire": ("smoke", "warm", "stars", "wood"),
    "a treehouse": ("children", "ladder", "branches", "secret"),
    "a pair of red shoes": ("colour", "walk", "bright", "feet"),
    "a night train": ("sleep", "window", "station", "journey"),
    "a vegetable garden": ("soil", "green", "carrots", "sun"),
    "a grandfather clock": ("time", "hands", "wood", "hour"),
    "a kite": ("wind", "sky", "string", "fly"),
    "a busy kitchen": ("cook", "heat", "plates", "knife"),
    "a sandy beach": ("waves", "sea", "shells", "sun"),
    "a school bus": ("yellow", "children", "driver", "morning"),
    "a cup of coffee": ("morning", "warm", "smell", "taste"),
    "a football match": ("goal", "team", "crowd", "ball"),
    "a stone bridge": ("river", "cross", "old", "arch"),
    "a bowl of soup": ("warm", "spoon", "vegetables", "cold"),
    "a hot-air balloon": ("sky", "basket", "float", "wind"),
    "a letter from far away": ("paper", "news", "friend", "read"),
    "a quiet forest": ("trees", "birds", "path", "leaves"),
    "a garden swing": ("children", "air", "rope", "summer"),
    "a barber shop": ("hair", "chair", "mirror", "talk"),
    "a rescue dog": ("home", "loyal", "love", "tail"),
    "a winter morning": ("cold", "snow", "breath", "sun"),
}
MESSAGES: dict[str, tuple[str, ...]] = {
    "Write a short message to a neighbour who plays loud music at night.": ("sleep", "please", "quiet", "late"),
    "Write a short note to a friend who is ill.": ("rest", "soon", "better", "miss"),
    "Write a short invitation to a picnic in the park.": ("food", "Saturday", "blanket", "bring"),
    "Write a short message to your boss because you will be late.": ("traffic", "sorry", "meeting", "minutes"),
    "Write a short notice about a lost umbrella.": ("found", "blue", "call", "handle"),
    "Write a short thank-you note to a teacher.": ("class", "learned", "patience", "lessons"),
    "Write a short message that congratulates a colleague on a new job.": ("proud", "team", "luck", "success"),
    "Write a short advertisement for a second-hand sofa.": ("price", "comfortable", "colour", "condition"),
    "Write a short message to a landlord about a broken heater.": ("cold", "repair", "soon", "flat"),
    "Write a short welcome message for new members of a chess club.": ("game", "board", "learn", "weekly"),
    "Write a short reminder about a dentist appointment.": ("time", "teeth", "call", "arrive"),
    "Write a short note to the family about whose turn it is to wash the dishes.": ("tonight", "clean", "fair", "sink"),
    "Write a short message to cancel a dinner.": ("sorry", "another", "week", "ill"),
    "Write a short request for a day off.": ("Friday", "family", "work", "approve"),
    "Write a short birthday greeting for a grandmother.": ("love", "cake", "health", "family"),
    "Write a short message to sell a used guitar.": ("strings", "sound", "price", "case"),
    "Write a short note of apology for a broken vase.": ("replace", "accident", "sorry", "flowers"),
    "Write a short post that recommends a small restaurant.": ("food", "friendly", "fresh", "menu"),
    "Write a short message asking a friend to water the plants.": ("holiday", "key", "kitchen", "week"),
    "Write a short farewell message to a colleague.": ("miss", "work", "future", "luck"),
    "Write a short notice for a bus stop that has moved.": ("street", "new", "corner", "passengers"),
    "Write a short message to a shop about a jacket that does not fit.": ("size", "return", "large", "order"),
    "Write a short note for a child's lunch box.": ("love", "school", "apple", "fun"),
    "Write a short message inviting neighbours to clean the park.": ("rubbish", "gloves", "Sunday", "together"),
    "Write a short complaint about a cold meal in a hotel.": ("room", "waiter", "refund", "soup"),
    "Write a short message that asks for help with moving house.": ("boxes", "van", "pizza", "strong"),
    "Write a get-well card for an aunt.": ("soon", "hospital", "rest", "love"),
    "Write a short message of good luck before an exam.": ("calm", "ready", "study", "believe"),
    "Write a short notice about a yoga class.": ("mat", "breathe", "evening", "beginners"),
    "Write a short message to a friend you have not seen for years.": ("remember", "time", "meet", "school"),
    "Write a short announcement that the office coffee machine is broken.": ("repair", "tea", "Monday", "sorry"),
    "Write a short description of yourself for a book club.": ("read", "novels", "evening", "favourite"),
    "Write a short message to parents about a school trip.": ("museum", "bus", "lunch", "children"),
    "Write a short speech for a wedding.": ("love", "together", "happy", "friends"),
    "Write a short note to thank someone who found your wallet.": ("honest", "money", "street", "grateful"),
    "Write a short message about a free kitten.": ("home", "soft", "weeks", "love"),
}
_SHARES = (("test", 0.2), ("validation", 0.1))
"""Of the topics of each table; the rest is for training."""


def requests(split: Split) -> tuple[Request, ...]:
    """Every instruction of a split, with keywords, in the order of the tables."""
    return (
        *(
            Request(form.format(topic=topic), keywords)
            for topic, keywords in _of_split(ACTIVITIES, split).items()
            for form in ACTIVITY_FORMS
        ),
        *(
            Request(form.format(topic=topic), keywords)
            for topic, keywords in _of_split(THINGS, split).items()
            for form in THING_FORMS
        ),
        *(Request(text, keywords) for text, keywords in _of_split(MESSAGES, split).items()),
    )


def _of_split(table: dict[str, tuple[str, ...]], split: Split) -> dict[str, tuple[str, ...]]:
    """The entries of a table that belong to a split."""
    rng, rest = Random("constraints/splits"), list(table)
    parts: dict[Split, set[str]] = {}
    for name, share in _SHARES:
        parts[name] = set()
        while len(parts[name]) < share * len(table):
            chosen = pick(rng, rest)
            rest.remove(chosen)
            parts[name].add(chosen)
    kept = parts.get(split, set(rest))
    return {entry: keywords for entry, keywords in table.items() if entry in kept}
