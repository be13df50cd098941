"""Open-vocabulary values for memory dialogues: invented and everyday names, places, words, codes, numbers, dates.

Every value belongs either to training or to evaluation, by a hash of its text: what is asked in an evaluation was
never the value of any fact in training. Knows nothing of relations.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable
from functools import cache
from importlib.resources import files

ONSETS = (
    "b br c ch cl cr d dr f fl fr g gl gr h j k kl kr l m n p pl pr qu r s sh sk sl sm sn sp st t th tr v w y z zh"
).split()
PLAIN_ONSETS = "b d f g h j k l m n p r s t v w z".split()
VOWELS = "a e i o u a e i o a e ai au ea ee ei ie io oa oo ou y".split()
CODAS = "b ck d f g k l ll lm lt m n nd ng nn nt p r rd rk rn rt s sh ss st t th v x z".split()
PLAIN_VOWELS = "a e i o u".split()
PLACE_ENDS = ("ton ville burg ford dale mouth wick stead field haven by port mere holm grad ia land stan hurst").split()
NAME_ENDS = "a o ie y us en in er el is ette ina ara on as".split()
FIRST_NAMES = (
    "Anna Ben Carla David Emma Felix Greta Hugo Irene Jonas Karin Leo Maria Nina Oscar Paula Quentin Rosa Simon Tessa "
    "Umar Vera Walter Xenia Yusuf Zoe Max Bella Luna Charlie Rocky Milo Daisy Buddy Oliver Lucy Jack Sam Alice Tom "
    "Sarah Peter John Mary Kate Paul Laura Mark Susan James Linda Robert Julia Henry Clara Arthur Mia Noah Ella Liam"
).split()
TOWNS = (
    "Paris London Berlin Rome Madrid Lisbon Vienna Prague Oslo Dublin Boston Chicago Denver Austin Seattle Toronto "
    "Sydney Tokyo Cairo Lima Brighton Leeds York Bath Geneva Lyon Porto Krakow Riga Bergen Spain France Italy Norway"
).split()
COLORS = (
    "red blue green yellow purple orange pink brown black white grey silver golden turquoise maroon crimson teal "
    "lavender beige ivory olive coral scarlet indigo violet amber"
).split()
SHADES = "dark light pale bright deep dusty soft royal pastel metallic".split()
FOODS = (
    "pizza pasta lasagna sushi curry ramen tacos pancakes chocolate cheese soup salad rice noodles bread apples grapes "
    "strawberries mushrooms olives peanuts shrimp salmon chicken stew dumplings porridge waffles honey yogurt lentils"
).split()
DISHES = "stew soup pie cake bread curry salad noodles dumplings pudding pancakes cheese tea juice".split()
MANNERS = "fried roasted spicy sweet smoked grilled cold creamy pickled baked".split()
JOBS = (
    "welder nurse teacher baker plumber lawyer farmer pilot chef florist tailor miner dentist barber clerk painter "
    "librarian carpenter mechanic gardener translator surgeon judge waiter electrician architect beekeeper"
).split()
FIELDS = "bridge glass cloud ship wool data night road river clock stone paper cheese train".split()
TRADES = "builder keeper inspector maker engineer designer analyst driver guard trainer cleaner painter".split()
WORDS = (
    "chess tennis guitar piano violin drums painting pottery knitting hiking sailing fencing judo football rugby "
    "tiger otter owl fox panda eagle whale lizard spiders heights thunder Spanish German Welsh Latin cello banjo"
).split()
TITLE_WORDS = (
    "Silver Crow River Night Garden Stone Winter Last Empty Golden House Paper Moon Glass Ocean Road Burning Quiet "
    "Lost King Velvet Storm Hollow Lantern Summer Ashes Iron Secret Tower Wolf Thousand Broken Sky Salt Mirror"
).split()
STREETS = "Street Road Lane Avenue Square Hill Court Park Bridge Gardens".split()
ACTIVITIES = (
    "rock climbing, stamp collecting, bird watching, baking bread, playing chess, long walks, open water swimming, "
    "model trains, watching old films, making candles, restoring furniture, trail running, beekeeping, salsa dancing, "
    "fly fishing, writing poems, street photography, growing tomatoes, fixing bikes, board games, singing in a choir, "
    "paper folding, home brewing, table tennis, ice skating, horse riding, star gazing, wood carving, making jam"
).split(", ")
SPOTS = (
    "bakery, hospital, farm, library, office, school, museum, harbour, station, airport, market, kitchen, attic, "
    "garage, basement, garden, forest, beach, island, lake, mountain, village, hotel, restaurant, cafe, pub, shop, "
    "factory, bank, church, castle, zoo, park, gym, theatre, cinema, stable, barn, warehouse, lighthouse, "
    "laboratory, workshop, studio, prison, campsite, tower, playground, mill, vineyard, orchard, bookshop, pharmacy, "
    "supermarket, stadium, post office, swimming pool, police station, petrol station, town hall, fire station, "
    "drawer, cupboard, fridge, shelf, bedroom, hallway, bathroom, balcony, shed, cellar, canal, border, coast, "
    "fishing village, ski resort, flower shop, toy shop"
).split(", ")
SPOT_MANNERS = "small big old new quiet busy little cold nice famous".split()
THINGS = (
    "boat, piano, umbrella, bicycle, tractor, camera, tent, lamp, kettle, sofa, motorbike, telescope, ladder, "
    "wallet, scarf, ring, mirror, carpet, drone, laptop, typewriter, kite, canoe, hammer, suitcase, clock, van, "
    "helmet, guitar, teapot, blanket, mug, necklace, microscope, sewing machine, fountain pen, fishing rod, "
    "chess set, sledge, skateboard, wheelchair, violin, trailer, rucksack, compass, vase, printer, rug, bench, "
    "record player, radio, coat, hat, shovel"
).split(", ")
ANIMALS = (
    "dog cat parrot hamster rabbit goldfish tortoise snake lizard pony horse donkey goat sheep cow pig duck goose "
    "canary budgie ferret mouse rat frog gecko tarantula hedgehog llama alpaca otter fox owl bear wolf elephant "
    "giraffe penguin dolphin whale tiger lion panda squirrel badger eagle swan crab octopus koala kangaroo camel "
    "zebra monkey"
).split()
DRINKS = (
    "tea, coffee, milk, juice, water, lemonade, cocoa, beer, wine, cider, green tea, orange juice, hot chocolate, "
    "iced tea, apple juice, black coffee, oat milk, ginger ale, mint tea, cola, sparkling water, espresso, "
    "smoothies, buttermilk"
).split(", ")
SPORTS = (
    "tennis football rugby hockey golf cricket basketball volleyball badminton handball squash baseball swimming "
    "rowing running boxing judo karate fencing surfing skiing skating climbing cycling archery sailing wrestling "
    "yoga darts chess"
).split()
INSTRUMENTS = (
    "guitar piano violin drums flute trumpet cello harp clarinet saxophone organ accordion banjo trombone oboe viola "
    "harmonica ukulele tuba bagpipes recorder mandolin xylophone bassoon double bass"
).split()
LANGUAGES = (
    "English French German Spanish Italian Portuguese Dutch Danish Swedish Norwegian Finnish Polish Czech Greek "
    "Turkish Arabic Hebrew Russian Japanese Chinese Korean Hindi Latin Welsh Irish Hungarian Swahili Urdu Icelandic "
    "Basque Thai"
).split()
COUNTS = (
    "two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen "
    "nineteen twenty thirty forty fifty"
).split()
MONTHS = ("January February March April May June July August September October November December").split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()


def is_held_out(value: str) -> bool:
    """Whether a value belongs to evaluation; a tenth of all do."""
    return zlib.crc32(value.lower().encode()) % 10 == 0


def draw_value(rng: random.Random, kind: str, *, held_out: bool) -> str:
    """A value of `kind`, from training's or from evaluation's side of the hash."""
    while True:
        value = _MAKERS[kind](rng)
        if is_held_out(value) == held_out:
            return value


@cache
def common_words() -> tuple[str, ...]:
    """English words of stories and talk, by which real values are drawn beside invented ones."""
    return tuple((files("engine.training") / "facts" / "words.txt").read_text("utf-8").split())


def _syllable(rng: random.Random, closed: float = 0.5) -> str:
    plain = rng.random() < 0.6
    onset = rng.choice(PLAIN_ONSETS if plain else ONSETS)
    vowel = rng.choice(PLAIN_VOWELS if plain else VOWELS)
    return onset + vowel + (rng.choice(CODAS) if rng.random() < closed else "")


def _stem(rng: random.Random) -> str:
    """An invented stem of one to three syllables."""
    count = rng.choices((1, 2, 3), (2, 7, 1))[0]
    return "".join(_syllable(rng, 0.6 if i == count - 1 else 0.25) for i in range(count))


def _name(rng: random.Random) -> str:
    roll = rng.random()
    if roll < 0.2:
        return rng.choice(FIRST_NAMES)
    if roll < 0.35:
        return rng.choice(common_words()).capitalize()
    name = (_stem(rng) if roll < 0.7 else _syllable(rng, 0.4) + rng.choice(NAME_ENDS)).capitalize()
    if rng.random() < 0.1:
        return f"{name} {_stem(rng).capitalize()}"
    return name


def _place(rng: random.Random) -> str:
    roll = rng.random()
    if roll < 0.15:
        return rng.choice(TOWNS)
    if roll < 0.45:
        return (_stem(rng) + rng.choice(PLACE_ENDS)).capitalize()
    if roll < 0.55:
        return f"{_real_or_invented(rng).capitalize()} {rng.choice(STREETS)}"
    place = _real_or_invented(rng).capitalize()
    if rng.random() < 0.15:
        return rng.choice(("Port ", "New ", "Saint ", "North ", "Upper ")) + place
    return place


def _word(rng: random.Random) -> str:
    roll = rng.random()
    if roll < 0.2:
        return rng.choice(WORDS)
    if roll < 0.3:
        return rng.choice(ACTIVITIES)
    if roll < 0.6:
        return rng.choice(common_words())
    if roll < 0.65:
        return f"{rng.choice(common_words())} {rng.choice(common_words())}"
    return f"{_stem(rng)}{rng.randrange(100)}" if roll < 0.7 else _stem(rng)


def _real_or_invented(rng: random.Random) -> str:
    return rng.choice(common_words()) if rng.random() < 0.4 else _stem(rng)


def _number(rng: random.Random) -> str:
    if rng.random() < 0.1:
        letters = rng.choices("ABCDEFGHJKLMNPRSTUVWXYZ", k=rng.choice((1, 2)))
        return f"{''.join(letters)}{rng.choice(('', '-', ' '))}{rng.randrange(10, 1000)}"
    return str(rng.randrange(1, 10 ** rng.choices((1, 2, 3, 4, 6), (2, 8, 8, 8, 2))[0]))


def _date(rng: random.Random) -> str:
    if rng.random() < 0.15:
        return "next " + rng.choice(DAYS)
    day, month = rng.randrange(1, 29), rng.choice(MONTHS)
    ending = {1: "st", 2: "nd", 3: "rd", 21: "st", 22: "nd", 23: "rd"}.get(day, "th")
    return rng.choice((f"the {day}{ending} of {month}", f"{month} {day}{ending}", f"{day} {month}"))


def _time(rng: random.Random) -> str:
    hour = rng.randrange(1, 13)
    if rng.random() < 0.6:
        return f"{hour}:{rng.randrange(0, 60):02d}"
    words = "one two three four five six seven eight nine ten eleven twelve".split()
    return rng.choice(("half past ", "quarter to ", "quarter past ", "")) + words[hour - 1]


def _color(rng: random.Random) -> str:
    roll = rng.random()
    if roll < 0.4:
        return rng.choice(COLORS)
    if roll < 0.65:
        return f"{rng.choice(SHADES)} {rng.choice(COLORS)}"
    return _real_or_invented(rng)


def _food(rng: random.Random) -> str:
    roll = rng.random()
    if roll < 0.35:
        return rng.choice(FOODS)
    if roll < 0.6:
        return f"{rng.choice(MANNERS)} {rng.choice(FOODS)}"
    return f"{_real_or_invented(rng)} {rng.choice(DISHES)}" if roll < 0.8 else _real_or_invented(rng)


def _job(rng: random.Random) -> str:
    roll = rng.random()
    if roll < 0.5:
        return rng.choice(JOBS)
    if roll < 0.75:
        return f"{rng.choice(FIELDS)} {rng.choice(TRADES)}"
    return f"{rng.choice(common_words())} {rng.choice(TRADES)}" if roll < 0.9 else _stem(rng) + "er"


def _title(rng: random.Random) -> str:
    words = rng.sample(TITLE_WORDS, rng.choice((1, 2, 2)))
    if rng.random() < 0.5:
        words.append(_real_or_invented(rng).capitalize())
    return " ".join(["The", *words] if rng.random() < 0.5 else words)


def _spot(rng: random.Random) -> str:
    spot = _one_of(rng, SPOTS)
    return f"{rng.choice(SPOT_MANNERS)} {spot}" if rng.random() < 0.15 else spot


def _one_of(rng: random.Random, usual: list[str], share: float = 0.65) -> str:
    """A usual word, or now and then any word: what is told is not always what would be usual."""
    return rng.choice(usual) if rng.random() < share else _real_or_invented(rng)


def _language(rng: random.Random) -> str:
    return rng.choice(LANGUAGES) if rng.random() < 0.65 else _stem(rng).capitalize()


def _count(rng: random.Random) -> str:
    return rng.choice(COUNTS) if rng.random() < 0.6 else str(rng.randrange(2, 200))


_MAKERS: dict[str, Callable[[random.Random], str]] = {
    "name": _name,
    "place": _place,
    "word": _word,
    "number": _number,
    "date": _date,
    "time": _time,
    "color": _color,
    "food": _food,
    "job": _job,
    "title": _title,
    "spot": _spot,
    "thing": lambda rng: _one_of(rng, THINGS),
    "animal": lambda rng: _one_of(rng, ANIMALS),
    "drink": lambda rng: _one_of(rng, DRINKS),
    "sport": lambda rng: _one_of(rng, SPORTS),
    "instrument": lambda rng: _one_of(rng, INSTRUMENTS),
    "language": _language,
    "count": _count,
}
KINDS = tuple(_MAKERS)
