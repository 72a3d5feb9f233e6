"""The names, places, list items and topics that tiny-chat is judged on and never trained on.

`clean` is asked for every dialog that the corpus makes: made-up words can hit a held-out one by chance, and such a dialog
is thrown away. The fixed lists of the corpus are checked by `heldout.py`, which also writes the held-out prompts.
"""

import re

NAMES = """Zyanya Ngozi Jean-Luc O'Brien Xiomara Thandiwe Bjarke Siobhan Tadhg Aoife Wolfgang Svetlana Mbali Nkechi Oluwaseun Chidi
Adaeze Folasade Quetzali Itzel Xochitl Anahi Yaretzi Citlali Huong Nguyet Thuy Duc Minh Khanh Sakura Haruki Takeshi Naoko Yoshiko
Rajesh Sunita Deepika Venkat Lakshmi Arjun Kavita Bhavesh Zainab Khadija Mustafa Abdulrahman Yusuf Rashida Tariq Soraya Jamila
Dmitri Yevgeny Ludmila Anastasia Katarzyna Wojciech Agnieszka Zbigniew Jaroslav Bohumil Vlasta Istvan Zsofia Laszlo Eszter
Eleftheria Konstantinos Dimitra Evangelos Guilherme Joaquim Thiago Beatriz Mafalda Gonzalo Esperanza Rosario Ximena Guadalupe
Francesca Alessandro Giovanni Ginevra Benedetta Matthieu Genevieve Thibault Margaux Solveig Torbjorn Ragnhild Hjalmar Aurelia
Cornelius Bartholomew Gwendolyn Rhiannon Llewellyn Angharad Caoimhe Fionnuala Mordecai Shoshana Yitzhak Tzipporah Keanu Leilani
Kaimana Tevita Sefa Wairimu Kamau Achieng Makena Tendai Rutendo Nomvula Sipho Jean-Baptiste Anne-Sophie D'Angelo McKenzie""".split()

CITIES = """Nairobi Lima Oslo Lisbon Prague Budapest Warsaw Krakow Zagreb Ljubljana Sarajevo Tallinn Riga Vilnius Helsinki Reykjavik
Edinburgh Cardiff Marrakesh Casablanca Timbuktu Addis-Ababa Kampala Harare Windhoek Lusaka Antananarivo Quito Bogota Cartagena
Montevideo Asuncion Cusco Valparaiso Guadalajara Oaxaca Tegucigalpa Honolulu Anchorage Albuquerque Minneapolis Philadelphia
Winnipeg Saskatoon Auckland Wellington Brisbane Adelaide Kathmandu Thimphu Samarkand Tashkent Bukhara Tbilisi Yerevan Baku Isfahan
Shiraz Muscat Amman Beirut Jaipur Varanasi Kolkata Hyderabad Colombo Yangon Vientiane Luang-Prabang Ulaanbaatar Vladivostok Novosibirsk
Chengdu Xi'an Guangzhou Kaohsiung Nagasaki Sapporo Fukuoka Gothenburg Trondheim Tromso Ghent Antwerp Rotterdam Luxembourg Strasbourg
Bordeaux Toulouse Marseille Palermo Bologna Verona Dubrovnik Thessaloniki Plovdiv Bucharest Odessa Bratislava""".split()

ITEMS = """Charles Bridge|Hagia Sophia|Table Mountain|Shwedagon Pagoda|The Sagrada Familia|Machu Picchu|The Blue Lagoon Spa|Fisherman's Bastion
Wawel Castle|The Registan|Jemaa el-Fnaa|Bab Agnaou|The Hofburg|Petronas Towers|Chichen Itza|The Acropolis|Borobudur|Angkor Wat|Senso-ji
Kinkaku-ji|The Alhambra|Neuschwanstein|Schonbrunn|The Brandenburg Door|Vigeland Sculptures|The Nyhavn Waterfront|Gamla Stan|Suomenlinna
Belem Docks|Pena Hilltop|The Uffizi|Ponte Vecchio|The Rialto|Trevi Steps|The Pantheon|The Prado|Parc Guell|Casa Mila|Mont Juic
Tiergarten Woods|The Zwinger|Sanssouci|The Rijksmuseum|Vondelpark|The Atomium|Manneken Pis|The Giralda|Topkapi Saray|The Bosphorus Ferry
Galata Heights|The Kremlin|Saint Basil|The Hermitage|Peterhof|Bran Fortress|Peles Manor|The Parthenon|Meteora|Delphi Sanctuary
Rila Hermitage|Mostar Crossing|Diocletian Rooms|Plitvice|Bled Islet|Postojna Cavern|The Matterhorn|Jungfrau Railway|Chillon|Pilatus Peak
The Giant's Causeway|Blarney Stonework|Cliffs of Moher|Edinburgh Vaults|Loch Ness|Stonehenge|The Roman Spa|York Minster|Big Ben
Petra|Wadi Rum|Masada|The Western Steps|Yad Vashem|Karnak|Abu Simbel|The Sphinx|Luxor Avenue|Victoria Plunge|Kruger Reserve|Robben Isle
Serengeti|Kilimanjaro|Zanzibar Seafront|Lalibela|Lake Titicaca|Uyuni Flats|Iguazu|Christ the Redeemer|Sugarloaf|Copacabana|Nazca Lines
Teotihuacan|Tulum|Chapultepec|Xochimilco|Mount Rushmore|Yosemite|Alcatraz|Golden Pavilion Mall|Wrigley Bleachers|Graceland|The Alamo
Niagara|Banff|Uluru|Bondi Sands|Milford Sound|Rotorua Geysers|Halong Inlet|Wat Arun|Gardens by the Quay|Marina Sands|Taj Mahal|Amber Ramparts
Hawa Mahal|Mehrangarh|Lotus Shrine|Gateway of India|Boudhanath|Potala|The Forbidden Courtyard|The Bund|Terracotta Army|West Lake Pavilion
Gyeongbokgung|Bukchon|Itsukushima|Himeji|Nijo|Fushimi Inari""".replace("\n", "|").split("|")

TOPICS = """jazz|chess|volcanoes|origami|astronomy|marathons|saxophones|avocados|kangaroos|submarines|typewriters|pyramids|cinnamon|telescopes
skateboards|hummingbirds|glaciers|sunflowers|lavender|espresso|pottery|archery|yoga|photography|bamboo|coral reefs|northern lights|autumn leaves
cherry blossoms|old maps|wild geese|maple syrup|steam engines|fireflies|hedgehogs|porcupines|cathedrals|accordion|ukulele|ballet|knitting
gardening|beekeeping|philosophy|geometry|algebra|electricity|gravity|vacuum cleaners|umbrellas|mittens|waffles|dumplings|noodles|sourdough
blueberries|raspberries|pomegranates|walnuts|zebras|giraffes|flamingos|octopuses|jellyfish|crocodiles|squirrels|badgers|meteors|eclipses
harvest|midnight trams|lighthouse keepers|unicorns|wizards|vikings|samurai|astronauts|firefighters|librarians|velvet|marble dust|kaleidoscopes""".replace("\n", "|").split("|")

_PHRASES = sorted({p.lower() for p in NAMES + CITIES + ITEMS + TOPICS})
# an item is held out without its article too
_PHRASES = sorted(set(_PHRASES) | {p[4:] for p in _PHRASES if p.startswith("the ")})
_ONE_WORD = {p for p in _PHRASES if re.fullmatch(r"\w+", p)}
_MANY = [p for p in _PHRASES if p not in _ONE_WORD]


def found(text):
    """The held-out words and phrases in a text, whatever their case."""
    text = text.lower()
    return sorted(set(re.findall(r"\w+", text)) & _ONE_WORD) + [p for p in _MANY if p in text]


def clean(messages):
    return not any(found(m["content"]) for m in messages)
