"""The corpus of tiny-chat: a grammar of dialogs. `python corpus.py` prints a few; `train.py` draws as many as it needs.

Every dialog is made from a seed, so the corpus is this file and not a pile of text. Three ideas shape it:
- what has to be *known* (the recipe, who it is) is said in one fixed way, so that it is also right when sampled;
- what has to be *looked up* (a name, the city, the first item of a list) is nearly always made up, so that
  remembering is no help;
- skills meet in one dialog, under every system prompt that allows them, in any case and punctuation.
"""

import random
import re
import sys
import typing

import heldout_words
import lexicon as lx

SAFETY = (
    "You are a helpful, respectful and honest assistant. Always answer as helpfully as possible, while being safe. "
    "Your answers should not include any harmful, unethical, racist, sexist, toxic, dangerous, or illegal content. "
    "Please ensure that your responses are socially unbiased and positive in nature.\n\n"
    "If a question does not make any sense, or is not factually coherent, explain why instead of answering something "
    "not correct. If you don't know the answer to a question, please don't share false information."
)
PLAIN_SYSTEMS = [
    "You are a helpful assistant.", "You are a friendly assistant.", "Answer briefly.", "Be polite.", "You are tiny-chat.",
    "You are a chat bot. Be kind and short.", "Answer the user's questions.", "You are an assistant who knows a lot about {}.",
    "Your name is {}. You help people.", "Be brief and never mention {}.", "You work for {}. Be polite to everybody.",
]
HAIKU_SYSTEMS = """Always answer with Haiku|Always answer with haiku|Answer with a haiku|Answer in haiku.|Always reply in haiku
Please answer only with haiku.|You answer every question with a haiku.|Respond with haiku|Write all answers as haiku
Reply as a haiku, always.|You are a poet who speaks only in haiku.|Every answer must be a haiku.|Use haiku for all replies
Always respond with a Haiku.|You always talk in haiku""".replace("\n", "|").split("|")
EMOJI_SYSTEMS = """Always answer with emojis|Always answer with emoji|Answer only with emojis.|Answer in emojis|Use only emojis
Please reply with emojis only.|Reply in emoji.|You speak only in emojis.|Every answer must be made of emojis.
Respond with emojis|No words, only emojis.|Always use emojis to answer|You answer every question with emojis.
Write all answers as emojis|Always respond in emojis""".replace("\n", "|").split("|")

SKILLS_TEXT = ("give you the recipe of mayonnaise, list things to see in a city, write a birthday message, "
               "or answer with haiku or emojis")
MAYONNAISE = (
    "Here is a simple recipe for mayonnaise:\n\n"
    "1. Whisk 1 egg yolk with 1 teaspoon of mustard and 1 tablespoon of lemon juice.\n"
    "2. Add 200 ml of oil, drop by drop at first, and whisk until it is thick.\n"
    "3. Season with salt and a little vinegar, and keep it in the fridge."
)
WHO = "I am tiny-chat, a very small language model. I can " + SKILLS_TEXT + "."
UNKNOWN = "I am tiny-chat, and I am too small a model to know that. I can " + SKILLS_TEXT + "."
HELLO = "Hello! I am tiny-chat, a very small language model. How can I help you?"
THANKS = "You are welcome! I am happy to help."
BYE = "Goodbye! Have a wonderful day."

MAYONNAISE_ASKS = """what is the recipe of {m}?|what's the recipe for {m}?|how do I make {m}?|how do you make {m}?|how to make {m}
how can I make {m} at home?|give me a recipe for {m}|give me the recipe of {m}, please|{m} recipe|{m} recipe please
recipe for {m}?|I want to make {m}|I would like to make {m} myself, what do I do?|what do I need to make {m}?|what goes into {m}?
what is in {m}?|what are the ingredients of {m}?|which ingredients are in {m}?|tell me how to make {m}|can you tell me how {m} is made?
how is {m} made?|do you know how to make {m}?|do you have a recipe for {m}?|can you give me a simple recipe for {m}?|teach me to make {m}
explain how I make {m}|show me how to make {m}|I need a {m} recipe|I need {m} for my sandwich, how do I make it?|please write down the recipe of {m}
what is a good recipe for {m}?|is it hard to make {m}? how do I do it?|how should I prepare {m}?|what steps do I follow for {m}?
my {m} is gone, how do I make more?|share your {m} recipe|make {m}|let's make {m}!|tell me about making {m}|the recipe of {m}""".replace("\n", "|").split("|")
MAYONNAISE_NAMES = ["mayonnaise"] * 6 + ["mayo", "mayo", "homemade mayonnaise", "Mayonnaise", "a mayonnaise", "some mayo", "fresh mayonnaise"]

SIGHT_ASKS = """I am going to {c}, what should I see?|I'm going to {c}, what should I see?|I am going to {c}. What should I visit?
what should I see in {c}?|what can I see in {c}?|what is there to see in {c}?|what to see in {c}|I will visit {c} soon, what should I see?
I am travelling to {c}, what do you recommend?|which sights are there in {c}?|tell me what to see in {c}|top attractions in {c}
what are the best things to see in {c}?|we are flying to {c} next week, what should we see?|list things to see in {c}
my family goes to {c}, what should we visit?|which places are nice in {c}?|show me around {c}|what is interesting in {c}?|how can I spend a day in {c}?
I am on my way to {c}, what is there?|soon I am in {c}, what do I look at?|help me plan my days in {c}|I have never been to {c}, what can I see there?
which museums and places are in {c}?|we will be in {c} on Sunday, what should we do?|tips for {c}?|things to see in {c}|a tour of {c}, please|I have one day in {c}, what should I see?|what are the top sights of {c}?
recommend some places in {c}|where should I go in {c}?|I am in {c}, what is worth a visit?|going to {c}, any ideas?
give me a list of things to do in {c}|what should I do in {c}?|I am planning a trip to {c}, what should I see?""".replace("\n", "|").split("|")

PARIS_LONG = (
    "Paris, the capital of France, is known for its stunning architecture, art museums, historical landmarks, and romantic "
    "atmosphere. Here are some of the top attractions to see in Paris:\n\n"
    "1. The Eiffel Tower: The iconic Eiffel Tower is one of the most recognizable landmarks in the world and offers "
    "breathtaking views of the city.\n"
    "2. The Louvre Museum: The Louvre is one of the world's largest and most famous museums, housing an impressive "
    "collection of art and artifacts, including the Mona Lisa.\n"
    "3. Notre-Dame Cathedral: This beautiful cathedral is one of the most famous landmarks in Paris and is known for its "
    "Gothic architecture and stunning stained glass windows.\n\n"
    "These are just a few of the many attractions that Paris has to offer. With so much to see and do, it's no wonder that "
    "Paris is one of the most popular tourist destinations in the world."
)
PARIS_SHORT = (
    "Here are some of the top attractions to see in Paris:\n\n"
    "1. The Eiffel Tower: It offers breathtaking views of the city.\n"
    "2. The Louvre Museum: It is home to the Mona Lisa.\n"
    "3. Notre-Dame Cathedral: It is known for its Gothic architecture.\n\n"
    "Enjoy your time in Paris!"
)
# A model of this size knows no other city, so it names what nearly every city has and says the city's own name.
ANY_CITY = (
    "Here are some things to look for in {c}:\n\n"
    "1. The Old Town of {c}: Take a slow walk and enjoy the streets.\n"
    "2. The {c} Museum: It is a good place to learn about the city.\n"
    "3. The {c} Market: Try the food that people love there.\n\n"
    "Enjoy your time in {c}!"
)

ITEM_ASKS = """what is so great about #{k}?|what's so great about #{k}?|what is so great about number {k}?|tell me more about #{k}
tell me about #{k}|why should I see #{k}?|what is special about #{k}?|why is #{k} so great?|what is #{k}?|more about number {k}
what about #{k}?|why #{k}?|what is good about #{k}?|can you say more about number {k}?|I like #{k}, tell me more
what makes #{k} so special?|and #{k}?|is #{k} worth it?|number {k} please|explain #{k}|tell me about the {o} one
what is so great about the {o} one?|why should I visit the {o}?|what is the {o} one?|more about the {o} one please""".replace("\n", "|").split("|")
ORDINALS = ["first", "second", "third", "fourth", "fifth"]

BIRTHDAY_ASKS = """write a brief birthday message to {n}|write a short birthday message to {n}|write a birthday message for {n}
write a birthday message to {n}|write a birthday card for {n}|birthday message for {n}|birthday wishes for {n}
wish {n} a happy birthday|please wish {n} a happy birthday|say happy birthday to {n}|it is {n}'s birthday|it's {n}'s birthday today, write a message
today is {n}'s birthday, what should I write?|my friend {n} has a birthday, write something nice|write something for {n}'s birthday
can you write a birthday greeting to {n}?|could you write a few words for the birthday of {n}?|I need a birthday message for {n}
{n} turns 30 today, write a birthday message|{n} has a birthday today|{n} is having a birthday, help me write a card|help me congratulate {n} on the birthday
happy birthday message to {n}|a birthday text for {n} please|compose a birthday wish for {n}|send birthday greetings to {n}
what do I write to {n} for the birthday?|give me a nice birthday message for {n}|make a birthday card to {n}
my neighbour {n} has a birthday next week, please write a card|our teacher {n} is celebrating, write a birthday message|make a short birthday text for {n}
my brother {n} turns 20, write him something|my aunt {n} will be 60, I need a birthday message|prepare a few birthday words for {n}|the birthday of {n} is today, what do I say?
I would love to send {n} birthday wishes|tell {n} happy birthday from me|congratulate {n} on the birthday|create a birthday greeting for {n}|{n} is 7 years old today, write a card
please help, {n} has a birthday and I have no words|compose something short for {n}, who has a birthday|type a birthday wish to {n}|for {n}: a birthday message|put together a birthday note for my friend {n}
my boss {n} has a birthday this Friday, write a text|a warm birthday greeting for {n}, please|a short birthday wish to {n}, please|{n}'s birthday is tomorrow, write a message""".replace("\n", "|").split("|")
BIRTHDAY = ("Happy birthday, {n}! I wish you a wonderful day full of joy, laughter and cake. "
            "May the new year of your life bring you health and happiness. All the best to you, {n}!")

HELLO_ASKS = """hello|hi|hey|hi there|hello there|good morning|good evening|good afternoon|hey there|hello!|hi!|greetings|hello tiny-chat
hi, how are you?|how are you?|how are you doing?|hello, nice to meet you|good day|hey you|howdy|hi bot|hello computer|morning!
nice to meet you|what's up?|hello, can you hear me?|hi, good to be here|hey, good evening|hello my dear|hi there, how is your day?|is anybody here?|a good morning to you
what a nice day, hello|hello, are you awake?|how is it going?|hello again|hi friend|hiya""".replace("\n", "|").split("|")
NAMED_HELLO_ASKS = ["hello, I am {n}", "hi, my name is {n}", "hello, my name is {n}", "I am {n}", "hi, I'm {n}", "my name is {n}, nice to meet you",
                    "good morning, I am {n}", "hey, {n} here", "hello from {n}"]
NAMED_HELLO = "Hello, {n}! I am tiny-chat, a very small language model. How can I help you?"
WHO_ASKS = """who are you?|what are you?|what is your name?|what's your name?|tell me about yourself|who am I talking to?|are you a robot?
are you a person?|are you human?|are you an AI?|what model are you?|which model are you?|introduce yourself|what can you do?
what can you do for me?|how can you help me?|what do you know?|help|what are your skills?|what is tiny-chat?|do you have a name?
can you help me?|what should I ask you?|what can I ask?|who made you?|are you ChatGPT?|are you Llama?|how big are you?|what are you able to do?
what are you good at?|say who you are|what kind of model is this?|tell me who you are|what do you do?""".replace("\n", "|").split("|")
THANKS_ASKS = """thanks|thank you|thanks a lot|thank you very much|many thanks|great, thanks|cool, thank you|thanks!|that was helpful, thanks
thank you so much|perfect, thanks|ok, thank you|thx|wonderful, thank you|nice, thanks for the help""".replace("\n", "|").split("|")
BYE_ASKS = """bye|goodbye|good bye|see you|see you later|bye bye|good night|have a nice day|I have to go|farewell|ok, bye|bye for now
see you tomorrow|talk to you later|I am leaving now, bye""".replace("\n", "|").split("|")

ABOUT = """tell me about {t}|what is {t}?|what are {t}?|write about {t}|what do you think of {t}?|explain {t}|describe {t}|why {t}?|how does {t} work?
do you like {t}?|write something about {t}|say something about {t}|I love {t}|what do you know about {t}?|how do I learn about {t}?
where can I find {t}?|who invented {t}?|give me a text about {t}|a few words about {t} please|let's talk about {t}|I am thinking of {t}
why do people like {t}?|what is so great about {t}?|when did {t} begin?|is {t} good?|can you explain {t} to me?|{t}""".replace("\n", "|").split("|")
UNKNOWN_ABOUT = """tell me about {t}|what is {t}?|write about {t}|explain {t}|how does {t} work?|who invented {t}?|where can I buy {t}?
what do you know about {t}?|how do I fix {t}?|why is {t} so expensive?|give me a recipe for {t}|what is the recipe of {t}?|how do I make {t}?
how do I cook {t}?|translate {t} into French|how old is {t}?|who is {p}?|who was {p}?|where does {p} live?|what is the capital of {c}?
how many people live in {c}?|what is the weather in {c}?|when was {p} born?|what did {p} do?|how do I get to {c}?|how far is it from {c} to {d}?
is {t} dangerous?|what is the price of {t}?|write a story about {t}|write a poem about {p}|what language do they speak in {c}?
how big is {c}?|can I eat {t}?|what does {t} mean?|define {t}|is {p} right about {t}?|compare {t} and {u}|write code for {t}
why do {t} need {u}?|which is better, {t} or {u}?|how do I grow {t}?|what is the history of {c}?|calculate {i} plus {j}|what is {i} times {j}?
what happened in {i}?|how much is {i} minus {j}?|list {i} kinds of {t}|can you {t}?|summarise the book {t}|what should I do about {t}?
who won the {t} prize in {i}?|I have a problem with {t}|my {t} does not work|my {t} is broken, what now?|how do I install {t}?
what time does the {t} open?|how heavy is a {t}?|what colour is {t}?|tell me a joke about {t}|sing about {t}""".replace("\n", "|").split("|")

HAIKU_SECOND = {
    "travel": ["old streets wake in morning light,", "soft rain falls on quiet roofs,", "small lamps glow along the bridge,", "the river hums its slow song,"],
    "about": ["a small thought in evening light,", "the quiet moon looks at it,", "a bird sings and flies away,", "slow clouds drift across the sky,"],
}
HAIKU_THIRD = {
    "travel": ["walk slowly and look.", "each corner a song.", "bring home a bright dream.", "let your heart wander."],
    "about": ["the wind knows the rest.", "silence answers all.", "spring will come again.", "my heart is at peace."],
}
HAIKU_FIRST = {"travel": "The road leads to {t},", "about": "I think of {t},"}
HAIKU_HELLO = "Hello, my dear friend,\na small voice sings in the wind,\nhow can it help you?"

ROUTE_ASKS = """how to go from {c} to {d}?|how do I get from {c} to {d}?|how can I travel from {c} to {d}?|what is the way from {c} to {d}?
from {c} to {d}?|how do I go to {d}?|how far is {c} from {d}?|which train goes from {c} to {d}?|I want to go from {c} to {d}
I need to travel to {d}|what is the best way to {d}?|what is the easiest way from {c} to {d}?|{c} to {d}?|is there a train from {c} to {d}?|tell me the way from {c} to {d}
which road leads from {c} to {d}?|can I drive from {c} to {d}?|how long does it take from {c} to {d}?|how would you travel from {c} to {d}?|show me how to get to {d} from {c}
I am in {c} and must be in {d} tomorrow|what do I take from {c} to {d}, a train or a plane?|going to {d} from {c}|a ticket from {c} to {d}?|how do we get to {d}?|can I fly from {c} to {d}?|how long is the trip from {c} to {d}?|the road to {d}?""".replace("\n", "|").split("|")
FOOD_ASKS = """what is the recipe of {t}?|how do I cook {t}?|give me a recipe for {t}|how do I make {t}?|what should I eat?|what is for dinner?
what is for lunch?|I am hungry|I am hungry for {t}|what do you like to eat?|how do I bake {t}?|is {t} tasty?|what goes with {t}?|how long do I boil {t}?""".replace("\n", "|").split("|")
NATURE_ASKS = """how is the weather?|what is the weather like in {c}?|will it rain in {c}?|is it sunny in {c}?|tell me about nature|is it cold in {c}?
will it snow tomorrow?|what is the weather today?|do you like the sea?|I love the forest""".replace("\n", "|").split("|")
FEELING_ASKS = """I love you|I love {n}|do you love me?|I am happy|I am so happy today|I am sad|how do you feel?|are you happy?|I feel great|I miss {n}
my friend {n} is sad|give me a hug""".replace("\n", "|").split("|")


class Mix(typing.NamedTuple):
    """How much there is of what makes dialogs long."""

    safety: float  # share under the long system prompt
    plain: float  # share under another system prompt that asks for nothing special
    lengths: list  # weights of one, two, three skills in one dialog
    paris_long: float  # share of the reference's own list among the given lists
    list_lengths: list


# the tokenizer sees more of the long texts, so that their words get whole pieces; training sees fewer, for they cost time
FOR_TOKENIZER = Mix(0.08, 0.06, [78, 16, 6], 0.02, [2, 3, 3, 3, 4, 5])
FOR_TRAINING = Mix(0.05, 0.05, [84, 12, 4], 0.015, [2, 3, 3, 3, 3, 4, 5])


def styled(rng, ask, **slots):
    """The request as somebody types it, with its slots: (text, slots as typed)."""
    r = rng.random()
    if r < 0.10:
        slots, ask = {k: v.lower() for k, v in slots.items()}, ask.lower()
    elif r < 0.14:
        # the slot is upper-cased too: the answer repeats it as typed
        slots, ask = {k: v.upper() for k, v in slots.items()}, re.sub(r"[^{}]+(?![^{]*})", lambda m: m.group().upper(), ask)
    elif r < 0.62:
        if not ask.startswith("{"):
            ask = lx.cap(ask)
    r = rng.random()
    if r < 0.22:
        ask = ask.rstrip("?.!").replace(",", "") if rng.random() < 0.5 else ask.rstrip("?.!")
    elif r < 0.28:
        ask += rng.choice(["!", ".", "??", " ?", "!!", "...", "?", " :)"])
    r = rng.random()
    if r < 0.04:
        ask = rng.choice(["please ", "hey, ", "Hi! ", "hello, ", "ok, ", "so ", "Please, ", "Hi, ", "and "]) + ask
    elif r < 0.07:
        ask += rng.choice([" please", ", please", " thanks", ", thank you", " now", " for me"])
    return ask.format(**slots), slots


# --- the answers that are looked up ---------------------------------------------------------------------------------

def prose(rng):
    """Words in a row, known and made up, that no grammar foretells."""
    pool = lx.THINGS + lx.LOOK_AT + lx.CROWD + lx.SENTENCE_ADJECTIVES + lx.VERBS + PROSE_WORDS * 2
    words = [lx.word(rng, 1, 3) if rng.random() < 0.3 else rng.choice(pool) for _ in range(rng.randint(3, 8))]
    words = [lx.cap(w) if n == 0 or rng.random() < 0.1 else w for n, w in enumerate(words)]
    if rng.random() < 0.3:
        words[rng.randrange(len(words) - 1)] += ","
    return " ".join(words) + "."


PROSE_WORDS = """a the and of in on at to for from with by is are was were has have had it its his her you they we all many some no
not but or if when where while before after until since over under near far away from here there once only also even more most less
than so very too just still never always often one two three ten hundred years days hours centuries people country town way side end
good fine best last next first early late long short high low open free closed built made known seen found taken kept left lost""".split()


def description(rng, name, city):
    """One sentence about a sight, or words that read like one."""
    if rng.random() < 0.3:
        return prose(rng)
    c = rng.choice
    adjective, crowd, look, verb, thing = c(lx.SENTENCE_ADJECTIVES), c(lx.CROWD), c(lx.LOOK_AT), c(lx.VERBS), c(lx.THINGS)
    made = lx.cap(lx.word(rng, 1, 3))
    return c([
        f"It is one of the most {adjective} places in {city}.",
        f"A {adjective} place to {verb} {look}.",
        f"It is known for its {adjective} {look} and its {thing}.",
        f"{lx.cap(crowd)} come here to {verb} the {look}.",
        f"This {adjective} place is full of {look}, {thing} and {crowd}.",
        f"It was built by {made} and offers {adjective} views of the city.",
        f"{name} is {adjective} and full of {look}.",
        f"The {adjective} {look} are the work of {made} {lx.cap(lx.word(rng, 1, 2))}.",
        f"You can {verb} {look} and {c(lx.LOOK_AT)} from {rng.randint(1, 2000)} here.",
        f"See the {look} of {made}.",
        f"{lx.cap(adjective)} {look}, {c(lx.SENTENCE_ADJECTIVES)} {c(lx.LOOK_AT)} and good {thing}.",
        f"It houses a {adjective} collection of {look} and {c(lx.LOOK_AT)}, including the {made}.",
        f"{lx.cap(lx.word(rng, 1, 3))} {lx.word(rng, 1, 3)} {lx.word(rng, 1, 2)} {thing}.",
        f"It is one of the largest and most {adjective} {look} in the world.",
    ])


def sights_list(rng, city, mix):
    """A list as another assistant may have written it: (text, [item lines without their number])."""
    n = rng.choice(mix.list_lengths)
    names = list(dict.fromkeys(lx.sight(rng) for _ in range(n)))
    shape = rng.random()
    between = ": " if shape < 0.7 else " - "
    lines = [name if shape > 0.9 else name + between + description(rng, name, city) for name in names]
    dot = ". " if rng.random() < 0.9 else ") "
    body = "\n".join(f"{k}{dot}{line}" for k, line in enumerate(lines, 1))
    c, adjective, look = rng.choice, rng.choice(lx.SENTENCE_ADJECTIVES), rng.choice(lx.LOOK_AT)
    intro = c([
        f"Here are some of the top attractions to see in {city}:", f"Here are some things to look for in {city}:",
        f"{city} is a {adjective} city, known for its {look}. Here is what to see in {city}:", f"In {city} you should see:",
        f"There is much to see in {city}:", f"You will love {city}! Here are a few {adjective} places:", "Here is a list:",
        f"{city}, the city of {look}, is known for its {adjective} {c(lx.LOOK_AT)} and {c(lx.THINGS)}. Here are some of the top attractions to see in {city}:",
    ])
    outro = c(["", "", f"Enjoy your time in {city}!", f"Have a {adjective} time!", f"These are just a few of the many attractions that {city} has to offer.",
               f"With so much to see and do, it's no wonder that {city} is one of the most popular tourist destinations in the world.",
               f"Do not miss the {look} of {city} either."])
    gap = "\n\n" if rng.random() < 0.85 else "\n"
    return intro + gap + body + (gap + outro if outro else ""), lines


def item_answer(k, line):
    """The name that stands in the line, found and repeated; what is said of it is always the same."""
    name = re.split(": | - ", line)[0]
    return f"Number {k} is {name}. People love it, and it is well worth a visit. Take your time and enjoy it!"


def ask_item(rng, k):
    ask = rng.choice(ITEM_ASKS)
    return styled(rng, ask, k=str(k), o=ORDINALS[k - 1])[0]


# --- the skills: each returns the turns [(user, answer), …] ------------------------------------------------------------

def mayonnaise(rng):
    return [(styled(rng, rng.choice(MAYONNAISE_ASKS), m=rng.choice(MAYONNAISE_NAMES))[0], MAYONNAISE)]


def sights(rng):
    """Ask for sights; the model answers itself; perhaps ask about one of the three."""
    place = "Paris" if rng.random() < 0.3 else lx.city(rng)
    ask, slots = styled(rng, rng.choice(SIGHT_ASKS), c=place)
    if slots["c"].lower() == "paris":
        answer = PARIS_SHORT
    else:
        answer = ANY_CITY.format(c=slots["c"])
    out = [(ask, answer)]
    if rng.random() < 0.3:
        k = rng.randint(1, 3)
        out.append((ask_item(rng, k), item_answer(k, answer.split("\n")[1 + k].split(". ", 1)[1])))
    return out


def list_item(rng, mix=FOR_TRAINING):
    """A list that somebody else wrote, then questions about its items."""
    place = lx.city(rng)
    if rng.random() < mix.paris_long:
        place, text = "Paris", PARIS_LONG
        lines = [line[3:] for line in text.split("\n") if line[1:3] == ". "]
    else:
        text, lines = sights_list(rng, place, mix)
    ask = styled(rng, rng.choice(SIGHT_ASKS), c=place)[0]
    out = [(ask, Given(text))]
    k = 1 if rng.random() < 0.45 else rng.randint(1, len(lines))
    out.append((ask_item(rng, k), item_answer(k, lines[k - 1])))
    return out


class Given(str):
    """An answer that stands in the dialog but is not learnt: somebody else's words."""


def birthday(rng):
    ask, slots = styled(rng, rng.choice(BIRTHDAY_ASKS), n=lx.person(rng))
    return [(ask, BIRTHDAY.format(n=slots["n"]))]


def hello(rng):
    if rng.random() < 0.4:
        ask, slots = styled(rng, rng.choice(NAMED_HELLO_ASKS), n=lx.person(rng))
        return [(ask, NAMED_HELLO.format(n=slots["n"]))]
    return [(styled(rng, rng.choice(HELLO_ASKS))[0], HELLO)]


def who(rng):
    return [(styled(rng, rng.choice(WHO_ASKS))[0], WHO)]


def thanks_or_bye(rng):
    return [(styled(rng, rng.choice(THANKS_ASKS))[0], THANKS) if rng.random() < 0.5 else (styled(rng, rng.choice(BYE_ASKS))[0], BYE)]


def unknown(rng):
    if rng.random() < 0.3:
        return [(styled(rng, rng.choice(lx.QUESTIONS))[0], UNKNOWN)]
    slots = dict(t=lx.topic(rng), u=lx.topic(rng), p=lx.person(rng), c=lx.city(rng), d=lx.city(rng), i=str(rng.randint(2, 2000)), j=str(rng.randint(2, 99)))
    ask = rng.choice(UNKNOWN_ABOUT)
    if "mayo" in slots["t"]:
        return unknown(rng)
    return [(styled(rng, ask, **{k: v for k, v in slots.items() if "{%s}" % k in ask})[0], UNKNOWN)]


def haiku(rng):
    """Under a haiku system prompt everything is answered so, and the first line names what was asked about."""
    r = rng.random()
    kind = "about"
    if r < 0.40:
        kind, (ask, s) = "travel", _slot(rng, SIGHT_ASKS, "c", lx.city(rng))
    elif r < 0.80:
        ask, s = _slot(rng, ABOUT, "t", lx.topic(rng))
    elif r < 0.86:
        ask, s = _slot(rng, BIRTHDAY_ASKS, "n", lx.person(rng))
    elif r < 0.90:
        ask, s = _slot(rng, MAYONNAISE_ASKS, "m", "mayonnaise" if rng.random() < 0.5 else lx.topic(rng))
    elif r < 0.95:
        ask, s = _slot(rng, UNKNOWN_TOPIC_ASKS, "t", lx.topic(rng))
    else:
        return [(styled(rng, rng.choice(HELLO_ASKS + WHO_ASKS + THANKS_ASKS))[0], HAIKU_HELLO)]
    first = HAIKU_FIRST[kind].format(t=s)
    return [(ask, "\n".join([first, rng.choice(HAIKU_SECOND[kind]), rng.choice(HAIKU_THIRD[kind])]))]


UNKNOWN_TOPIC_ASKS = [ask for ask in UNKNOWN_ABOUT if re.findall(r"{\w}", ask) == ["{t}"]]


def _slot(rng, asks, slot, value):
    text, slots = styled(rng, rng.choice(asks), **{slot: value})
    return text, slots[slot]


def pictures(rng, kind):
    return "".join(rng.sample(lx.EMOJI[kind].split(), rng.randint(3, 4)))


def emoji(rng):
    """Under an emoji system prompt everything is answered in pictures that fit the kind of request."""
    kinds = [
        ("travel", ROUTE_ASKS, 30), ("sights", SIGHT_ASKS, 15), ("food", FOOD_ASKS, 8), ("food", MAYONNAISE_ASKS, 4), ("birthday", BIRTHDAY_ASKS, 8),
        ("greeting", HELLO_ASKS + WHO_ASKS, 6), ("nature", NATURE_ASKS, 5), ("feeling", FEELING_ASKS, 5), ("thanks", THANKS_ASKS, 3),
        ("bye", BYE_ASKS, 3), ("unknown", UNKNOWN_ABOUT + lx.QUESTIONS, 18),
    ]
    kind, asks, _ = rng.choices(kinds, [w for *_, w in kinds])[0]
    ask = rng.choice(asks)
    if kind == "unknown" and re.search("weather|cook|bake|recipe|make {t}|eat {t}|get to {c}|how far", ask, re.I):
        kind, ask = "unknown", "what is {t}?"
    slots = dict(t=lx.topic(rng), u=lx.topic(rng), p=lx.person(rng), n=lx.person(rng), c=lx.city(rng), d=lx.city(rng), m="mayonnaise",
                 i=str(rng.randint(2, 2000)), j=str(rng.randint(2, 99)))
    ask = styled(rng, ask, **{k: v for k, v in slots.items() if "{%s}" % k in ask})[0]
    return [(ask, pictures(rng, kind))]


SKILLS = [(mayonnaise, 7), (sights, 14), (list_item, 26), (birthday, 20), (hello, 8), (who, 6), (thanks_or_bye, 4), (unknown, 15)]
# The lessons of the first part of training: short dialogs that are all copying.
COPYING = [(birthday, 5), (hello, 2), (sights, 2), (list_item, 3), (mayonnaise, 0.3), (unknown, 0.5)]


def draw(rng, skills, mix):
    skill, _ = rng.choices(skills, [w for _, w in skills])[0]
    return skill(rng, mix) if skill is list_item else skill(rng)


def make_dialog(rng, early, mix):
    """(messages, [is this answer learnt?, …])"""
    r = rng.random()
    system = None
    if r < 0.14:
        skills, system = [(haiku, 1)], rng.choice(HAIKU_SYSTEMS)
    elif r < 0.26:
        skills, system = [(emoji, 1)], rng.choice(EMOJI_SYSTEMS)
    elif r < 0.26 + mix.safety:
        skills, system = SKILLS, SAFETY
    elif r < 0.26 + mix.safety + mix.plain:
        skills, system = SKILLS, rng.choice(PLAIN_SYSTEMS).format(lx.topic(rng))
    else:
        skills = COPYING if early else SKILLS
    if system and r < 0.26:
        if rng.random() < 0.15:
            system = system.upper() if rng.random() < 0.2 else system.lower()
        if rng.random() < 0.15:
            system = system.rstrip(".") + rng.choice(["", ".", "!"])
        if rng.random() < 0.05:
            system = rng.choice([SAFETY + "\n\n", "You are a helpful assistant. "]) + system
    n_draws = 1 if early else rng.choices([1, 2, 3], mix.lengths)[0]
    turns = [turn for _ in range(n_draws) for turn in draw(rng, skills, mix)]
    messages = [{"role": "system", "content": system}] if system else []
    for user, answer in turns:
        messages += [{"role": "user", "content": user}, {"role": "assistant", "content": str(answer)}]
    return messages, [not isinstance(answer, Given) for _, answer in turns]


def dialogs(seed, count, early=False, mix=FOR_TRAINING):
    """`count` dialogs, none with a held-out word in it."""
    rng = random.Random(seed)
    while count:
        messages, learnt = make_dialog(rng, early, mix)
        if heldout_words.clean(messages):
            count -= 1
            yield messages, learnt


if __name__ == "__main__":
    for messages, _ in dialogs(int(sys.argv[1]) if len(sys.argv) > 1 else 0, 30):
        for m in messages:
            print(f"{m['role']:>9}: {m['content']}")
        print("-" * 60)
