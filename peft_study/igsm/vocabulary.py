"""Names of things: four chains of four categories, each category with five sub-categories of items.

The shape follows iGSM (Part 2.1, section 2.3 and the published `categ.py`); the words are our own.
Every name is one word, capitalised, unique over the whole vocabulary, and holds no character of the
sentence grammar, so a word-level tokenizer can give each name a single token.
"""

from typing import NamedTuple


class Category(NamedTuple):
    """A kind of thing, such as Castle, with five sub-categories of item names."""

    name: str
    subcategories: tuple[tuple[str, ...], ...]


class Chain(NamedTuple):
    """Four categories from the top layer to the bottom one; an item holds items of the next category."""

    categories: tuple[Category, ...]


def _category(name: str, *rows: str) -> Category:
    return Category(name, tuple(tuple(row.split()) for row in rows))


_KINGDOM = Chain(
    (
        _category(
            "Kingdom",
            "Avaria Brontholm Caldera Drumond Elvaria Fjordane Gothmere Hesperia",
            "Istria Jorvik Kastilia Lorraine Mercia Navarra Ostmark Pomerania",
            "Quillon Ruthenia Savoia Thuringia Umbria Valdoria Wessex Xantoria",
            "Yngland Zelandia Aragonia Burgundia Cordovia Dalmatia Estmoor Frisia",
            "Galicia Havelland Illyria Jutland Karelia Livonia Moravia Norica",
        ),
        _category(
            "Castle",
            "Ashkeep Blackspire Crowhold Dawnwatch Eaglecrag Frostgate Grimtower Highwall",
            "Ironhelm Jadekeep Kingsrest Lionrock Moonhold Nightfort Oakguard Pinewatch",
            "Queensfort Ravenloft Stormhall Thornkeep Umberhall Vinehold Wolfden Yewguard",
            "Amberfort Brightmoat Coldspire Deepwell Elmgate Falconrest Greycliff Hawkstone",
            "Ivygate Kestrelhold Longbridge Mistfort Northgate Owlspire Redbastion Silverkeep",
        ),
        _category(
            "Room",
            "Armory Ballroom Cellar Dungeon Foyer Gallery Hall Infirmary",
            "Kitchen Library Music-room Nursery Observatory Pantry Refectory Scullery",
            "Throne-room Undercroft Vault Wardrobe Attic Buttery Chapel Dormitory",
            "Entresol Gatehouse Haven Keep-room Laundry Mews Oratory Parlor",
            "Rotunda Solar Turret Vestibule Workshop Bathhouse Cloister Drawing-room",
        ),
        _category(
            "Furniture",
            "Armchair Bench Cabinet Desk Easel Footstool Hammock Inglenook",
            "Lectern Mirror Nightstand Ottoman Pedestal Rug Settee Table",
            "Wardstand Bookcase Chandelier Dresser Footlocker Hatstand Lamp Mattress",
            "Pew Screen Tapestry Trunk Washstand Bedstead Candelabra Divan",
            "Hearth Loom Sideboard Sofa Stool Tallboy Throne Workbench",
        ),
    )
)

_GALAXY = Chain(
    (
        _category(
            "Galaxy",
            "Andara Boreon Cygnara Drakon Eridia Fornaxis Gemira Hydron",
            "Indara Juneon Kappara Lyrion Monoris Norma Orionis Pavona",
            "Quasara Retica Sculptor Tucana Ursara Velora Whirlon Xerion",
            "Yildara Zetara Aquilon Bootara Carinor Doradon Equulon Furion",
            "Grusara Horolon Leonis Musca Octanor Phoenixa Sagitta Volanor",
        ),
        _category(
            "Planet",
            "Arvos Belith Corvan Dioneth Essar Farrol Gantos Helvar",
            "Ithica Jovath Kessol Lumera Mirath Nexor Ombros Pyrrha",
            "Qaros Rhovan Selvik Tarsis Ulmora Vexil Wyndar Xylos",
            "Yavara Zorath Ankhos Brimel Chiron-b Dantar Eluvia Fenris",
            "Gorvath Hoth-nine Ixion Kalvar Leviad Morgath Nirvon Oberos",
        ),
        _category(
            "Island",
            "Anchorage Bayhead Coralcay Driftwood Eelpoint Foghaven Gullrock Heronkey",
            "Isleta Jettyhead Kelpshore Lagoona Mangrove Newholm Oysterbar Palmkey",
            "Quayside Reefend Sandspit Tidepool Undertow Vineland Whalebone Yarrowcay",
            "Albatross-key Breakwater Cormorant-rock Dunehead Ebbstone Ferncay Goldshore Haloreef",
            "Inkwater Keystone Limpet-rock Mooncay Noonhead Opalreef Pearlbank Saltmarsh",
        ),
        _category(
            "Creature",
            "Axolotl Badger Caiman Dormouse Echidna Falcon Gecko Hedgehog",
            "Ibis Jackal Kinkajou Lemur Marmot Narwhal Ocelot Pangolin",
            "Quokka Raccoon Salamander Tapir Urchin Viper Wombat Yak",
            "Alpaca Bison Civet Dingo Egret Ferret Gibbon Heron",
            "Iguana Jerboa Koala Lynx Mongoose Newt Otter Puffin",
        ),
    )
)

_FESTIVAL = Chain(
    (
        _category(
            "Festival",
            "Aprilfest Bluemoon Carnivale Daybreak Embernight Folkweek Glowfest Harvestide",
            "Icelight Jubilee Kitefest Lanternfest Midsummer Novafest Octavia Parade",
            "Quillfest Rivernight Solstice Tulipfest Unison Vintage Wintermarch Yuletide",
            "Auroral Bonfire Cherryfest Dragonday Equinox Fiesta Gardenfest Hilltop",
            "Indiefest Jazzweek Kermesse Lakeside Maypole Nocturne Openair Prismfest",
        ),
        _category(
            "Stage",
            "Amphitheater Bandstand Catwalk Dais Esplanade Forum Gazebo Hippodrome",
            "Icebox Jukehall Kiosk Loft Marquee Niche Odeon Pavilion",
            "Quadrangle Rostrum Soapbox Tent Upperdeck Veranda Warehouse Yardstage",
            "Arena Barnstage Courtyard Dome Encore Firepit Greenroom Hangar",
            "Islet Junction Knoll Lawn Meadowstage Nightclub Orangery Pier",
        ),
        _category(
            "Band",
            "Acolytes Bandits Comets Drifters Echoes Foxtrots Giants Heralds",
            "Idlers Jesters Knights Lanterns Mavericks Nomads Outlaws Pilgrims",
            "Quartz-boys Rovers Sirens Troubadours Underdogs Vagrants Wanderers Yonders",
            "Anvils Brigade Cadets Dynamos Embers Fables Gamblers Hurricanes",
            "Infernos Jackdaws Kestrels Legends Mirages Novas Oracles Phantoms",
        ),
        _category(
            "Instrument",
            "Accordion Bassoon Cello Dulcimer Euphonium Flute Guitar Harp",
            "Icebell Jawharp Kazoo Lute Mandolin Ney Oboe Piccolo",
            "Quena Recorder Sitar Trombone Ukulele Viola Whistle Xylophone",
            "Autoharp Banjo Clarinet Djembe Erhu Fiddle Gong Harmonica",
            "Kalimba Lyre Marimba Ocarina Pianola Rebec Saxophone Timpani",
        ),
    )
)

_VALLEY = Chain(
    (
        _category(
            "Valley",
            "Ambervale Birchdale Cloverglen Dovedale Elderdale Foxglen Goldenvale Hazeldale",
            "Irisvale Juniperglen Kinvale Larkdale Maplevale Nettleglen Oakendale Primrosedale",
            "Quaildale Rushvale Sorrelglen Thistledale Umbervale Violetdale Willowglen Yarrowdale",
            "Alderglen Brackendale Cedarvale Daisyglen Emberglen Ferndale Grassvale Heathdale",
            "Ivydale Jasperglen Kittiwake-vale Lindendale Mossglen Northvale Orchiddale Poppyglen",
        ),
        _category(
            "Farm",
            "Applecroft Barleycroft Cowslip Dairyhill Eastacre Flintfield Goosegreen Haywick",
            "Inglefield Jayacre Kingsacre Longmeadow Millbrook Newacre Oldbarn Plowfield",
            "Quarryacre Ryefield Sunnyacre Turnpike Upland Vetchfield Westacre Yeomanry",
            "Ashcroft Beechacre Cornwick Dewfield Elmcroft Furrow Grangehill Hopfield",
            "Innisfree Jollyacre Knollcroft Lambsgate Marshcroft Nutfield Orchardton Pigeonhill",
        ),
        _category(
            "Crop",
            "Artichoke Beetroot Cabbage Dill Eggplant Fennel Garlic Horseradish",
            "Indigo Jicama Kale Leek Mustard Napa-leaf Okra Parsnip",
            "Quinoa Radish Spinach Turnip Udo Vetch Watercress Yam",
            "Asparagus Broccoli Celery Daikon Endive Flax Ginger Hops",
            "Jute Kohlrabi Lentil Millet Nettle Onion Pumpkin Sorghum",
        ),
        _category(
            "Insect",
            "Ant Beetle Cicada Dragonfly Earwig Firefly Grasshopper Hornet",
            "Inchworm Junebug Katydid Ladybug Mantis Needlefly Oilbug Planthopper",
            "Queenbee Rootworm Sawfly Termite Underwing Vinegar-fly Weevil Yellowjacket",
            "Aphid Butterfly Cricket Damselfly Emperor-moth Froghopper Gnat Hawkmoth",
            "Lacewing Mayfly Moth Owlfly Pondskater Sandfly Thrips Wasp",
        ),
    )
)

CHAINS: tuple[Chain, ...] = (_KINGDOM, _GALAXY, _FESTIVAL, _VALLEY)
"""The whole vocabulary, in a fixed order: token ids depend on it."""

LETTERS: str = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
"""The 52 symbols that solutions bind values to (Part 2.1, Algorithm 6)."""


def all_names(chains: int = 4, subcategories: int = 5) -> list[str]:
    """Return the names of the first `chains` and the first `subcategories` of each category, in a fixed order."""
    names: list[str] = []
    for chain in CHAINS[:chains]:
        for category in chain.categories:
            names.append(category.name)
            for items in category.subcategories[:subcategories]:
                names.extend(items)
    return names


CATEGORY_OF: dict[str, str] = {
    item: category.name
    for chain in CHAINS
    for category in chain.categories
    for items in category.subcategories
    for item in items
}
"""The category of every item name."""
