"""The word lists: every word the corpus can contain is known in advance.

Invented countries, people and dishes keep the facts of the corpus apart from facts of the world. Objects start with a
consonant, so that "a" is always the right article.
"""

NAMES = tuple(
    "Anna Ben Clara David Emma Felix Grace Henry Iris Jack Kate Leo Mary Noah Olga Paul Rosa Sam Tina Victor "
    "Wendy Xavier Yara Zoe Alice Bruno Cora Dylan Elsa Frank Gina Hugo Ida Jonas Karen Lucas Maria Nina Oscar Petra "
    "Quinn Rita Simon Tara Uma Vera Walter Yusuf Amir Bella Carl Diana Erik Flora George Hannah Ivan Julia Kevin Laura".split()
)
PLACES = tuple("park school garden library station market museum office harbour castle beach kitchen theatre bakery farm hotel".split())
OBJECTS = tuple(
    "book letter ring ball kite basket ticket guitar lamp map necklace painting phone pencil plate postcard sandwich scarf "
    "drum toy watch whistle candle coin".split()
)

# Agreement: one token per form, singular beside plural.
NOUNS = tuple(
    (word, word + "s")
    for word in "key cabinet door dog cat doctor teacher farmer student pilot picture table wall road river boy girl author "
    "senator driver truck window bird horse judge lawyer tree house friend neighbour".split()
)
COPULAS = (("is", "are"), ("was", "were"), ("remains", "remain"), ("seems", "seem"))
ACTIONS = tuple((word + "s", word) for word in "sleep sing wait move fall wander appear arrive suffer shine".split())
LIKINGS = tuple((word + "s", word) for word in "like know see follow admire trust".split())
PREPOSITIONS = ("near", "beside", "behind", "above", "below", "with")
QUALITIES = tuple("old new red blue green white black small large strange famous quiet".split())
MANNERS = tuple("slowly often today here again alone nearby together".split())

BRACKETS = (("(", ")"), ("[", "]"), ("{", "}"))
COLOURS = tuple("red blue green white black pink brown grey".split())

SUBJECTS = tuple("film book meal hotel concert phone game play".split())
ASPECTS = tuple("acting plot music service staff price design ending sound food room story".split())
GOOD = tuple(
    "great lovely superb charming brilliant pleasant excellent delightful wonderful fresh clever warm bright fine perfect fun".split()
)
BAD = tuple("awful dull terrible boring weak poor horrible dreadful bland stale clumsy cold noisy ugly broken sad".split())
LABELS = ("positive", "negative")

COUNTRIES = tuple("Norland Veria Tolma Quesia Brenta Salvia Ordan Mirova Kestan Lunia Pavora Drossen".split())
PEOPLE = tuple(
    "Abbott Barlow Carver Dalton Easton Fisher Garner Holden Ingram Jarvis Keller Lawson "
    "Mercer Norris Osborn Palmer Quigley Rowley Sawyer Talbot Upton Vaughn Walden Yardley "
    "Archer Bishop Conway Draper Ellery Foster Gibson Harper Irving Jensen Kendal Lester "
    "Morgan Nelson Oakley Porter Quincy Ramsey Sutton Tanner Underwood Vernon Weston Yates".split()
)
RELATIONS = {
    "capital": tuple("Arvik Belmar Corvo Dunmor Elvas Fiskar Galten Hirsa Istrin Jorvan Kolma Lurin".split()),
    "language": tuple("norlic veric tolmian quesic brentish salvic ordanic mirovan kestic lunic pavoric drossic".split()),
    "dish": tuple("borsa chelna dumka farlo gosht halva jalma kerra lutka mofta nusli pirog".split()),
}
