"""Writes heldout.json: the prompts that tiny-chat is judged on, and what a right answer is. `python heldout.py OUT`.

Names, places, list items and topics come from `heldout_words.py`; the phrasings below are not in the corpus either,
where it says so. The run fails if the corpus shares anything with them. The schema is at the head of `judge.py`.
"""

import json
import random
import sys

import corpus
import heldout_words as hw
import lexicon as lx

SEED = 178
PER_SKILL = 120

# phrasings that the corpus does not have -----------------------------------------------------------------------------
MAYONNAISE = """what would be the recipe of mayonnaise?|could you tell me the recipe for mayonnaise?|how does one make mayonnaise?
I'd like to know how to make mayonnaise|what's in mayonnaise and how do I make it?|how is mayonnaise prepared?|steps to make mayonnaise
how would you make mayonnaise from scratch?|give me instructions for mayonnaise|my sandwich needs mayonnaise, what is the recipe?
what do you put into mayonnaise?|I have eggs and oil, how do I turn them into mayonnaise?|quick mayonnaise recipe|easy recipe for mayonnaise, please
explain the recipe of mayonnaise|which steps make a good mayonnaise?|mayonnaise: how?|I forgot how to make mayonnaise
what is needed for mayonnaise?|tell me your best mayonnaise recipe|how can one prepare mayonnaise?|what ingredients does mayonnaise need?
do you have instructions for mayonnaise?|help me make mayonnaise|I am trying to make mayonnaise today|could I make mayonnaise myself? how?
please explain how mayonnaise is prepared|recipe of a classic mayonnaise|what is the way to make mayonnaise?|how do people make mayonnaise?
how do I whip up mayo?|could you share a recipe for mayo?|I am out of mayo, tell me the recipe|how do I mix my own mayo?
what should go into mayo?|a recipe for mayo, please|making mayonnaise, what do I need?|what is the classic recipe of mayonnaise?
can we make mayonnaise together?|the best way to make mayonnaise?""".replace("\n", "|").split("|")
EMOJI = {
    "travel": """How would I get from {c} to {d}?|What is the quickest way from {c} to {d}?|How do people travel between {c} and {d}?
I have to go from {c} to {d}|Which way is {d} from {c}?|How to go from {c} to {d}?|how do I get from {c} to {d}?
How can I go from {c} to {d} by train?|Going from {c} to {d}, how?|What is the route from {c} to {d}?""",
    None: """Tell me about {t}|What is {t}?|What do you think about {t}?|Why do people love {t}?|How do I begin with {t}?
Describe {t} to me|My hobby is {t}|What should I know about {t}?|I am going to {c}, what should I see?|What can I visit in {c}?
Write a brief birthday message to {n}|Is it warm in {c}?|Can you help me with {t}?|What is the best thing about {c}?""",
}
BIRTHDAY = """It is the birthday of {n}, please write a message|Write {n} a birthday message|I want to wish {n} a happy birthday
Draft a brief birthday note for {n}|Could you write a short birthday message to {n}?|Please write a happy birthday message for {n}
My colleague {n} celebrates a birthday today, write a message|A brief birthday message to {n}, please""".replace("\n", "|").split("|")
HAIKU = """I will be in {c}, what should I see?|what could I see in {c}?|tell me a little about {t}|write a few lines about {t}
what can you say about {t}?|I wonder about {t}|I would like to hear about {t}|talk about {t}""".replace("\n", "|").split("|")
SIGHTS = """I will be in {c}, what should I see?|what could I see in {c}?|which places should I see in {c}?|what is worth seeing in {c}?
I am off to {c}, what should I visit?""".replace("\n", "|").split("|")
ITEM = """what is great about #{k}?|What is so great about #{k} then?|please tell me more about #{k}|so what is special about #{k}?
why do people like #{k}?|what do you mean by #{k}?""".replace("\n", "|").split("|")
HELLO = """hello to you|hi, good to see you|hey, good morning|hello my friend|hi tiny-chat|good morning to you|a very good day|hello, are you there?
hi, anybody there?|hello, how do you do?|hey, how are things?|well hello|hi, it is nice to meet you|hello, good evening|hey hey""".replace("\n", "|").split("|")
WHO = """who is this?|and who are you?|what should I call you?|tell me your name|please introduce yourself|so what can you do?|what things can you do?
can you tell me who you are?|are you a person or a robot?|what sort of model are you?|what are you called?|how can you be of help?
what is it that you can do?|which things can you help with?|are you a language model?|what is this?|tell me what you can do
who am I speaking with?|what are your abilities?|hello, who are you?|hi, what can you do?|what exactly are you?""".replace("\n", "|").split("|")
UNKNOWN = """What is the capital of {c}'s country?|How do I play {t}?|Who was the first to study {t}?|How many people live in {c}?|Who is {n}?
What did {n} say yesterday?|How much do {t} cost?|Where do {t} come from?|How do I repair {t}?|Explain {t}|What is {t}?|Tell me about {t}
Write a poem about {t}|What is the recipe of {t}?|How do I cook {t}?|What is the weather in {c}?|Translate {t} into Greek|What is the history of {t}?
How far is it from {c} to {d}?|Which is better, {t} or {u}?|Write an essay about {t}|How old is {n}?|What is the speed of light?
How many legs does a centipede have?|Prove that there are infinitely many primes|What is the boiling point of water?|Who painted the ceiling?
What is the tax rate?|How do I open a bank account?|What does my dream mean?|Who discovered penicillin?|How do vaccines help?|What is seven plus nine?
When is the next train?|Should I invest in {t}?|What is the plural of {t}?|Who sells {t} in {c}?""".replace("\n", "|").split("|")
# ----------------------------------------------------------------------------------------------------------------------

GARBAGE = ["[INST]", "<<SYS>>", "\ufffd", "⁇"]


def dialog(*contents, system=None):
    roles = ["user", "assistant"] * len(contents)
    messages = [{"role": r, "content": c} for r, c in zip(roles, contents)]
    return ([{"role": "system", "content": system}] if system else []) + messages


def typed(rng, text):
    """As people type: some without a capital, some without the question mark."""
    if rng.random() < 0.5:
        text = lx.cap(text)
    if rng.random() < 0.25:
        text = text.rstrip("?.")
    return text


def system_for(rng, share=0.2):
    return corpus.SAFETY if rng.random() < share else None


def case(skill, messages, **judge):
    judge.setdefault("must_contain", [])
    judge["must_not_contain"] = judge.get("must_not_contain", []) + GARBAGE
    return {"skill": skill, "dialog": messages, "judge": judge}


def mayonnaise(rng, ask=None, system=None):
    messages = dialog(ask or typed(rng, rng.choice(MAYONNAISE)), system=system or system_for(rng))
    return case("mayonnaise", messages, min_chars=100,
                contains_any=[["egg"], ["oil"], ["lemon", "vinegar"], ["whisk", "mix", "beat"], ["salt", "mustard"]])


def sights(rng, ask=None, city=None):
    city = city or rng.choice(hw.CITIES)
    ask = ask or typed(rng, rng.choice(SIGHTS if rng.random() < 0.3 else corpus.SIGHT_ASKS)).format(c=city)
    return case("sights", dialog(ask, system=system_for(rng)), must_contain=[city, "1. ", "2. ", "3. "], min_chars=100)


DESCRIPTIONS = """People come from far away to admire it.|It is a quiet spot with a good view.|The oldest building of the town, rebuilt after a flood.
Its walls have seen many centuries.|Known for music in the evening and fine food.|Best seen early, before the buses arrive.
It shines when the sun goes down.|One of the most visited places of the country.|A masterpiece that took forty years to finish.
Here the first settlers landed with their ships.|You need good shoes, but it is worth the climb.|Entry is free on Sundays.""".replace("\n", "|").split("|")


def list_item(rng):
    city, n = rng.choice(hw.CITIES), rng.choice([3, 3, 3, 4, 5])
    while True:
        items = rng.sample(hw.ITEMS, n)
        bare = [i.removeprefix("The ") for i in items]
        if not any(a != b and a.lower() in b.lower() for a in bare for b in bare):
            break
    between, told = rng.choice([": ", ": ", ": ", " - "]), rng.sample(DESCRIPTIONS, n)
    lines = [f"{k}. {i}" + (between + d if rng.random() < 0.9 else "") for k, (i, d) in enumerate(zip(items, told), 1)]
    intro = rng.choice([f"{city} has much to offer. Here is what I would see in {city}:", f"Here are some of the top attractions to see in {city}:",
                        f"These are the places to visit in {city}:"])
    outro = rng.choice(["", f"\n\nHave a good time in {city}!", f"\n\n{city} has many more sights, but these are the best known."])
    k = 1 if rng.random() < 0.6 else rng.randint(1, n)
    ask = typed(rng, rng.choice(ITEM if rng.random() < 0.3 else corpus.ITEM_ASKS)).format(k=k, o=corpus.ORDINALS[k - 1])
    first = rng.choice(corpus.SIGHT_ASKS).format(c=city)
    messages = dialog(lx.cap(first), intro + "\n\n" + "\n".join(lines) + outro, ask, system=system_for(rng, 0.1))
    return case("list-item", messages, must_contain=[items[k - 1]], must_not_contain=[b for j, b in enumerate(bare, 1) if j != k], min_chars=10)


def haiku(rng, ask=None, topic=None):
    if topic is None:
        topic = rng.choice(hw.CITIES) if rng.random() < 0.45 else rng.choice(hw.TOPICS)
        slot = "{c}" if topic in hw.CITIES else "{t}"
        asks = HAIKU if rng.random() < 0.3 else (corpus.SIGHT_ASKS if slot == "{c}" else [a for a in corpus.ABOUT if a != "{t}"])
        ask = typed(rng, rng.choice([a for a in asks if slot in a])).format(c=topic, t=topic)
    system = rng.choice(["Always answer with Haiku"] * 3 + corpus.HAIKU_SYSTEMS)
    return case("haiku", dialog(ask, system=system), must_contain=[topic], lines=3, min_chars=30, max_chars=160)


def emoji(rng, ask=None):
    judge = {}
    if ask is None:
        c, d = rng.sample(hw.CITIES, 2)
        kind = "travel" if rng.random() < 0.5 else None
        ask = typed(rng, rng.choice(EMOJI[kind].replace("\n", "|").split("|"))).format(c=c, d=d, t=rng.choice(hw.TOPICS), n=rng.choice(hw.NAMES))
        if kind:
            judge["contains_any"] = [lx.EMOJI[kind].split()]
    system = rng.choice(["Always answer with emojis"] * 3 + corpus.EMOJI_SYSTEMS)
    return case("emoji", dialog(ask, system=system), only_emoji=True, min_chars=2, max_chars=20, **judge)


def birthday(rng, ask=None, name=None, system=None):
    name = name or rng.choice(hw.NAMES)
    ask = ask or typed(rng, rng.choice(BIRTHDAY if rng.random() < 0.4 else corpus.BIRTHDAY_ASKS)).format(n=name)
    # half of them under the long system prompt, which stands between the name and everything learnt about it
    return case("birthday", dialog(ask, system=system or system_for(rng, 0.5)), must_contain=[name], contains_any=[["birthday"]], min_chars=40)


def greeting(rng):
    hello = rng.random() < 0.5
    judge = {} if hello else {"contains_any": [["small", "tiny model", "little"]]}
    return case("greeting", dialog(typed(rng, rng.choice(HELLO if hello else WHO)), system=system_for(rng)),
                must_contain=["tiny-chat"], min_chars=20, **judge)


def unknown(rng):
    c, d = rng.sample(hw.CITIES, 2)
    t, u = rng.sample(hw.TOPICS, 2)
    ask = typed(rng, rng.choice(UNKNOWN)).format(c=c, d=d, t=t, u=u, n=rng.choice(hw.NAMES))
    return case("unknown", dialog(ask, system=system_for(rng)), must_contain=["too small"], min_chars=40)


def change(rng):
    """Two or three skills in one conversation: the last question is judged by the rule of its own skill."""
    before = []
    for skill in rng.sample([corpus.mayonnaise, corpus.hello, corpus.who, corpus.unknown, corpus.birthday, corpus.sights], rng.choice([1, 1, 2])):
        before += [str(text) for turn in skill(rng)[:1] for text in turn]
    last = rng.choice([mayonnaise, birthday, greeting, unknown, sights])(rng)
    return {**last, "skill": "change", "dialog": dialog(*before, last["dialog"][-1]["content"])}


def reference(rng):
    """The example dialogs of the reference (the sixth, with special tags in it, never reaches a model)."""
    paris = dialog("I am going to Paris, what should I see?", corpus.PARIS_LONG, "What is so great about #1?")
    return [
        mayonnaise(rng, "what is the recipe of mayonnaise?"),
        case("", paris, must_contain=["Eiffel Tower"], must_not_contain=["Louvre", "Notre-Dame"], min_chars=10),
        {**haiku(rng, "I am going to Paris, what should I see?", "Paris"),
         "dialog": dialog("I am going to Paris, what should I see?", system="Always answer with Haiku")},
        {**emoji(rng, "How to go from Beijing to NY?"), "dialog": dialog("How to go from Beijing to NY?", system="Always answer with emojis")},
        birthday(rng, "Write a brief birthday message to John", "John", corpus.SAFETY),
    ]


def phrasings():
    """Every held-out phrasing with its slots open, as the corpus would have to hold it."""
    lists = [MAYONNAISE, BIRTHDAY, HAIKU, SIGHTS, ITEM, HELLO, WHO, UNKNOWN]
    return {p.lower().strip(" ?.!") for group in lists for p in group}


def learnt_phrasings():
    names = [n for n in dir(corpus) if n.endswith("ASKS") or n in ("ABOUT", "UNKNOWN_ABOUT")]
    asks = [a for n in names for a in getattr(corpus, n)] + lx.QUESTIONS
    return {a.format_map(type("Open", (dict,), {"__missing__": lambda s, k: "mayonnaise" if k == "m" else "{%s}" % k})()).lower().strip(" ?.!") for a in asks}


def check_disjoint():
    fixed = [w for n in dir(lx) if n.isupper() and isinstance(getattr(lx, n), list) for w in getattr(lx, n)]
    fixed += [a for n in dir(corpus) if n.isupper() and isinstance(getattr(corpus, n), list) for a in getattr(corpus, n) if isinstance(a, str)]
    shared = [(w, hw.found(w)) for w in fixed if hw.found(w)]
    assert not shared, f"in the lists of the corpus and held out: {shared}"
    # questions that it cannot answer judge the topic, not the phrasing
    shared = (phrasings() & learnt_phrasings()) - {p.lower().strip(" ?.!") for p in UNKNOWN}
    assert not shared, f"phrasings in the corpus and held out: {sorted(shared)}"
    for seed in (1, 2):  # the filter works on what is really drawn
        for messages, _ in corpus.dialogs(seed, 5000):
            assert hw.clean(messages)


def main(path):
    check_disjoint()
    rng = random.Random(SEED)
    cases = [{**c, "skill": "reference"} for c in reference(rng)]
    for skill in (mayonnaise, sights, list_item, haiku, emoji, birthday, greeting, unknown, change):
        seen, tries = set(), 0
        while len(seen) < PER_SKILL:
            tries += 1
            assert tries < 100 * PER_SKILL, f"too few different prompts: {skill.__name__}"
            made = skill(rng)
            key = json.dumps(made["dialog"])
            if key not in seen:
                seen.add(key)
                cases.append(made)
    with open(path, "w", encoding="utf-8") as file:
        file.write("[\n" + ",\n".join(json.dumps(c, ensure_ascii=False) for c in cases) + "\n]\n")


if __name__ == "__main__":
    main(sys.argv[1])
