"""Word lists of the corpus, and the makers of names that no list holds.

Copying a name is the hard part for a small model: it has to look at the prompt instead of remembering. So most names
in the corpus are made up on the spot, in many spellings, and real lists only add a little colour. Nothing in this file
may occur in `heldout.py`; `corpus.py` checks that.
"""

FIRST_NAMES = """John Mary James Anna Peter Laura Robert Linda Michael Susan David Karen Thomas Nancy Daniel Lisa Paul
Emma Mark Olivia George Sophia Kevin Mia Brian Emily Edward Grace Jason Chloe Ryan Lily Jacob Zoe Eric Hannah Adam Nora
Henry Ella Carlos Maria Luis Carmen Jorge Lucia Pablo Marta Hans Greta Klaus Ingrid Pierre Claire Marie Jules Marco
Giulia Paolo Chiara Ivan Olga Boris Irina Yuki Kenji Hana Akira Wei Ling Chen Raj Priya Anil Omar Fatima Ali Leila Kofi
Ama Mehmet Ayse Lars Astrid Sven Freya José Zoë André Chloé François Jürgen Søren Ana Tom Ben Sam Max Kim Jo Al Bo
Grandma Grandpa Mom Dad Uncle Aunt""".split()

CITIES = """Paris London Rome Madrid Berlin Vienna Dublin Athens Moscow Tokyo Kyoto Osaka Beijing Shanghai Delhi Mumbai
Sydney Toronto Montreal Boston Chicago Seattle Denver Miami Houston NY LA Amsterdam Brussels Geneva Zurich Milan Venice
Florence Naples Barcelona Seville Munich Hamburg Cologne Salzburg Stockholm Copenhagen Bangkok Singapore Jakarta Hanoi
Cairo Tunis Dakar Santiago Havana Dubai Istanbul Ankara Manila Seoul Busan Perth Geneva""".split() + [
    "New York", "San Francisco", "Hong Kong", "Los Angeles", "Mexico City", "Las Vegas", "Kuala Lumpur", "St. Louis"]

PLACE_NOUNS = """Museum Tower Cathedral Bridge Market Palace Castle Temple Garden Park Square Theatre Opera Library Harbour
Fountain Gate Church Mosque Abbey Fort Hall House Street Lake Beach Hill Island Station Gallery Zoo Aquarium Monastery
Lighthouse Observatory Arena Stadium Canal Waterfall Cave Valley Arch Column Pier Quarter Promenade Ruins Mill Chapel
Statue Tomb Viewpoint Terrace Bazaar Lagoon Vineyard Plaza Alley Cliffs Dunes Wall Mines Baths Cemetery""".split()

PLACE_ADJECTIVES = """Old New Royal National Great Grand Golden White Blue Red Green Black Silver Central Upper Lower North
South East West Ancient Hidden Little Big Holy Crystal Stone Floating Hanging Winter Summer Modern Imperial Public Painted
Sunken Whispering Long Iron Marble""".split()

# things that exist everywhere: haiku topics, parts of place names, subjects of questions
THINGS = """rain snow wind fire river mountain forest garden ocean moon sun star cloud storm spring summer winter night
morning evening coffee tea bread cheese apple orange lemon honey chocolate soup rice pasta fish cat dog horse bird whale
bear wolf fox rabbit mouse frog bee spider tree flower rose grass leaf stone sand island desert road bridge train boat
bicycle car ship rocket clock book letter song drum guitar piano violin dance painting school work sleep dream love
friendship peace time money music football tennis swimming cooking reading writing mathematics history science computers
robots software cities trains dinosaurs castles pirates ghosts shoes hats windows doors chairs lamps paper glass gold iron
silk salt pepper sugar milk water wine beer bananas potatoes tomatoes onions carrots mushrooms elephants tigers lions
penguins dolphins turtles butterflies ants snakes cows goats sheep chickens grandmothers neighbours teachers doctors
farmers sailors kings queens children babies holidays weddings birthdays trees lakes rivers oceans planets comets
lightning thunder fog ice shadows mirrors candles bells kites balloons puzzles games cards stories poems""".split()

SENTENCE_ADJECTIVES = """famous beautiful old quiet lively colourful impressive charming peaceful huge tiny popular
remarkable romantic historic modern elegant mysterious bright shady stunning wonderful iconic ancient grand cosy steep
recognizable breathtaking unusual rare gothic""".split()

CROWD = "visitors locals families artists students painters travellers children musicians tourists people writers".split()

LOOK_AT = """views paintings gardens windows fountains statues towers streets lanterns boats flowers clocks arches stairs
murals treasures columns bells maps mosaics carvings books trees shops cafes legends concerts lights roofs sunsets tiles
sculptures artifacts instruments costumes walls stones stars""".split()

VERBS = "see find love enjoy admire discover watch visit remember paint explore photograph".split()

# Emoji that one code point shows by itself, so that a piece of the vocabulary is a whole picture.
EMOJI = {
    "travel": "🚗 🚕 🚌 🚆 🚄 🛫 🛬 🚢 🌍 🌏 🗽 🏯 🧳 🎫 🚶 🛤",
    "food": "🍕 🍞 🍳 🥗 🍰 🍎 🍅 🧅 🥄 🔥 😋 🍴",
    "birthday": "🎂 🎉 🎁 🎈 🥳 🍰 🎊",
    "greeting": "👋 😊 🤗 🌞 🙂",
    "sights": "🏰 🗼 🎨 🌉 🍷 📸 🌳 🎭 😍 🚶",
    "nature": "🌳 🌊 🌧 🌞 🌈 🍃 🌸 🐦 🌙 🌟",
    "feeling": "💖 😊 🥰 🌟 🙏 🤗",
    "thanks": "🙏 😊 👍 💖",
    "bye": "👋 😴 🌙 😊",
    "unknown": "🤔 💭 ❓ 🔍 📚 💡 ✨ 🙂",
}

QUESTIONS = """What is the capital of Mongolia?|Who won the world cup in 1998?|How far is the moon?|What is 12 times 34?
What is the square root of 81?|Who wrote Hamlet?|Explain quantum mechanics|How do I fix my car?|What time is it?
What is the weather like tomorrow?|Who is the president?|Write a poem about love|Write an essay on the French Revolution
Translate good morning into German|What is the meaning of life?|How do planes fly?|Why is the sky blue?|Is it going to rain?
How many people live in Japan?|What should I cook tonight?|Tell me a joke|Sing a song|Write a Python program
How do I sort a list in Rust?|Which phone should I buy?|How do I lose weight?|What is a black hole?|Who invented the telephone?
Can you drive a car?|How old is the universe?|What does DNA stand for?|Recommend a good film|Play a game with me
Summarise the news|What stocks should I buy?|Is coffee healthy?|How do I learn Spanish?|What is the tallest mountain?
When did the war end?|Can pigs fly?|What is love?|Name three rivers|Spell banana|Count to ten|What colour is grass?
How do magnets work?|Why do cats purr?|Should I quit my job?|How do I tie a tie?|What is inflation?|Where is my phone?
How do I bake bread?|Give me a recipe for pancakes|What is the recipe of tomato soup?|How do I make pasta?
How do I cook rice?|What is the recipe of chocolate cake?|How do I make ketchup?|Write a story about a dragon
Which planet is the biggest?|Do you like music?|What is your favourite colour?|Are you alive?|Do you dream?
How tall is the tallest building in the world?|What is the best football team?|Tell me about history""".replace("\n", "|").split("|")

CONSONANTS = "b c d f g h j k l m n p q r s t v w x y z".split()
ONSETS = """b c d f g h j k l m n p r s t v w y z br ch cl cr dr fl fr gl gr kh kl kr ll mb mw nd ng ny ph pl pr qu rh sc sh sk
sl sm sn sp st str sw th tl tr ts tw vl wh wr xh zh zy x q kw gw ts dj tj hj bj""".split()
VOWELS = "a a a e e e i i i o o o u u y ai ae au ea ee ei eo ia ie io oa oe oo ou ua ue ui aa uu ya yo".split()
CODAS = "n r l s t m k d g p b th ng sh ck nd rt ll ss x z ch rd lf mp nt st tz v f h c w wn".split()
ENDINGS = "a o e i us ia in ov son ez el en an ah elle ette ita ova sky ton ham burg stad ville by wick ara ani oto uki".split()
ACCENTS = {"a": "áàâãäå", "e": "éèêë", "i": "íîï", "o": "óôõöø", "u": "úûü", "n": "ñ", "c": "ç", "s": "š", "z": "ž"}


def word(rng, low=1, high=4):
    """A made-up lower-case word of `low` to `high` syllables."""
    style = rng.random()
    if style < 0.18:  # almost any run of letters: every piece of the vocabulary must be copyable
        n = rng.randint(max(2, low * 2), high * 2 + 2)
        letters = [rng.choice("abcdefghijklmnopqrstuvwxyz") if rng.random() < 0.55 else rng.choice("aeiou") for _ in range(n)]
        return "".join(letters)
    out = ""
    for _ in range(rng.randint(low, high)):
        if out == "" and rng.random() < 0.2:
            out += rng.choice(VOWELS)
        else:
            onset = rng.choice(CONSONANTS) if rng.random() < 0.6 else rng.choice(ONSETS)
            out += onset + (rng.choice("aeiou") if rng.random() < 0.7 else rng.choice(VOWELS))
        if rng.random() < 0.3:
            out += rng.choice(CODAS) if rng.random() < 0.6 else rng.choice("nrlstmkdx")
    if rng.random() < 0.15:
        out += rng.choice(ENDINGS)
    if rng.random() < 0.06:
        at = rng.randrange(len(out))
        if out[at] in ACCENTS:
            out = out[:at] + rng.choice(ACCENTS[out[at]]) + out[at + 1:]
    return out if len(out) > 1 else out + rng.choice("aeiou") + rng.choice(CONSONANTS)


def cap(text):
    return text[:1].upper() + text[1:]


def person(rng):
    """A name to greet: mostly made up, in the shapes that names come in."""
    r = rng.random()
    if r < 0.12:
        return rng.choice(FIRST_NAMES)
    first = cap(word(rng, 1, 4))
    if r < 0.72:
        return first
    if r < 0.77:
        return first + "-" + (cap(word(rng, 1, 2)) if rng.random() < 0.8 else word(rng, 1, 2))
    if r < 0.81:
        return rng.choice(["O'", "D'", "N'", "L'", "K'"]) + cap(word(rng, 1, 3))
    if r < 0.84:
        return rng.choice(["Mc", "Mac", "De", "Le", "Van"]) + cap(word(rng, 1, 2))
    if r < 0.93:
        return first + " " + (rng.choice(FIRST_NAMES) if rng.random() < 0.2 else cap(word(rng, 1, 3)))
    if r < 0.96:
        return rng.choice(["Dr. ", "Aunt ", "Uncle ", "Mr. ", "Mrs. ", "my friend ", "my sister ", "Captain "]) + first
    return rng.choice(FIRST_NAMES) + " " + first


def city(rng):
    r = rng.random()
    if r < 0.18:
        return rng.choice(CITIES)
    name = cap(word(rng, 1, 4))
    if r < 0.78:
        return name
    if r < 0.86:
        return rng.choice(["New", "San", "Port", "Saint", "North", "Los", "El", "La", "Fort", "Mount", "Lake", "Santa"]) + " " + name
    if r < 0.9:
        return name + " " + rng.choice(["City", "Bay", "Falls", "Springs", "Beach", "Island"])
    if r < 0.95:
        return name + " " + cap(word(rng, 1, 3))
    return name + "-" + (cap(word(rng, 1, 2)) if rng.random() < 0.7 else rng.choice(["on-sea", "le-bains", "upon-" + cap(word(rng, 1, 2))]))


def sight(rng):
    """The name of something to see, as a list item shows it."""
    the = "The " if rng.random() < 0.45 else ""
    noun, adjective, made = rng.choice(PLACE_NOUNS), rng.choice(PLACE_ADJECTIVES), cap(word(rng, 1, 4))
    r = rng.random()
    if r < 0.12:
        return f"{the}{adjective} {noun}"
    if r < 0.42:
        return f"{the}{made} {noun}"
    if r < 0.55:
        return f"{the}{made} {cap(word(rng, 1, 3))}" + (f" {noun}" if rng.random() < 0.4 else "")
    if r < 0.63:
        return f"{noun} of {made}" if rng.random() < 0.6 else f"{noun} of {cap(rng.choice(THINGS))}"
    if r < 0.68:
        return f"{made}'s {noun}"
    if r < 0.73:
        return f"{the}{made}-{cap(word(rng, 1, 2))} {noun}"
    if r < 0.80:
        return f"{the}{cap(rng.choice(THINGS))} {noun}"
    if r < 0.86:
        return f"{rng.choice(['Mount', 'Lake', 'Saint', 'Casa', 'Villa', 'Fort', 'Cape', 'Palazzo'])} {made}"
    return the + made


def topic(rng):
    """What a haiku or a question is about: a known thing, a made-up word, or two words."""
    r = rng.random()
    if r < 0.30:
        return rng.choice(THINGS)
    if r < 0.62:
        return word(rng, 1, 4)
    if r < 0.72:
        return cap(word(rng, 1, 4))
    if r < 0.82:
        return rng.choice(SENTENCE_ADJECTIVES) + " " + (rng.choice(THINGS) if rng.random() < 0.5 else word(rng, 1, 3))
    if r < 0.92:
        return word(rng, 1, 3) + " " + (rng.choice(THINGS) if rng.random() < 0.5 else word(rng, 1, 3))
    return "the " + (rng.choice(THINGS) if rng.random() < 0.5 else word(rng, 1, 3))
