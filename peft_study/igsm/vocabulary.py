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
            "Avaria Brontholm Caldera Drumond Elvaria Fjordane Gothmere Hesperia "
            "Arvendale Belmoria Corvinia Dravenia Eldmark Falkoria "
            "Garrovia Haldoria Ismarra Jorvania Kaldovia Lothmere",
            "Istria Jorvik Kastilia Lorraine Mercia Navarra Ostmark Pomerania "
            "Malvoria Nordheim Orlandia Pellinor Quessaria Rosmark "
            "Sarvonia Tarvania Ulvania Vostrana Westmarch Zarovia",
            "Quillon Ruthenia Savoia Thuringia Umbria Valdoria Wessex Xantoria "
            "Alderia Beravia Castoria Dorvania Ermland Fenmarch Grelloria Hollmark Ithmoria Jasmaria Kirvania Lusoria",
            "Yngland Zelandia Aragonia Burgundia Cordovia Dalmatia Estmoor Frisia "
            "Marchovia Nembria Osterland Pallantia Rhovania Silvania "
            "Tormaria Ursland Vandoria Wendland Yarmark Zemoria",
            "Galicia Havelland Illyria Jutland Karelia Livonia Moravia Norica "
            "Anselmia Bohmark Carvalia Dunmarch Evermoor Gallovia Hartland Isenmark Kestovia Lormark Merovia Norwald",
        ),
        _category(
            "Castle",
            "Ashkeep Blackspire Crowhold Dawnwatch Eaglecrag Frostgate Grimtower Highwall "
            "Amberkeep Boldwall Cragmoor Dragonhold Emberkeep Fanghold "
            "Goldtower Harrowgate Ironwatch Juniperkeep Knightsrest Lanternkeep",
            "Ironhelm Jadekeep Kingsrest Lionrock Moonhold Nightfort Oakguard Pinewatch "
            "Maidenwall Nettlefort Oldmoat Palisade Quarrystone Rookhold "
            "Shieldwall Towerhill Ulfgard Vanehold Whitebastion Yarrowkeep",
            "Queensfort Ravenloft Stormhall Thornkeep Umberhall Vinehold Wolfden Yewguard "
            "Archwall Bellfort Copperspire Drakemoat Evenguard Flintkeep "
            "Gryphongate Heatherhold Icefort Jaywatch Kingsmoat Lowbridge",
            "Amberfort Brightmoat Coldspire Deepwell Elmgate Falconrest Greycliff Hawkstone "
            "Marblekeep Nightspire Opalfort Pikewall Ravenmoat Sablehold "
            "Thistlefort Underkeep Vigilgate Warhold Westguard Wyvernrest",
            "Ivygate Kestrelhold Longbridge Mistfort Northgate Owlspire Redbastion Silverkeep "
            "Ashbastion Bramblehold Cinderfort Duskwatch Ebonspire Fellkeep "
            "Granitehold Hollowgate Larkspire Mooncrag Slatewall Stonehaven",
        ),
        _category(
            "Room",
            "Armory Ballroom Cellar Dungeon Foyer Gallery Hall Infirmary "
            "Antechamber Bakery Chamber Den Ensuite Forge Garret Guardroom Larder Lounge Mezzanine Study",
            "Kitchen Library Music-room Nursery Observatory Pantry Refectory Scullery "
            "Alcove Anteroom Basement Boudoir Bedroom Breakfast-room "
            "Cloakroom Conservatory Corridor Crypt Dining-room Great-hall",
            "Throne-room Undercroft Vault Wardrobe Attic Buttery Chapel Dormitory "
            "Sunroom Guestroom Hallway Icehouse Lavatory Lobby Loggia Map-room Narthex Nook Office Passage",
            "Entresol Gatehouse Haven Keep-room Laundry Mews Oratory Parlor "
            "Playroom Portico Powder-room Reading-room Sacristy Saloon "
            "Salon Scriptorium Servery Sewing-room Shrine Sitting-room",
            "Rotunda Solar Turret Vestibule Workshop Bathhouse Cloister Drawing-room "
            "Smithy Stable Stairwell Stillroom Storeroom Strongroom "
            "Tearoom Trophy-room Vestry War-room Washroom Wine-cellar",
        ),
        _category(
            "Furniture",
            "Armchair Bench Cabinet Desk Easel Footstool Hammock Inglenook "
            "Bassinet Bookshelf Bureau Chair Chaise Chest Chesterfield Coffer Coat-rack Commode Console Couch",
            "Lectern Mirror Nightstand Ottoman Pedestal Rug Settee Table "
            "Cradle Credenza Crib Cupboard Cushion Davenport Daybed Display-case Dumbwaiter Etagere Fireguard Futon",
            "Wardstand Bookcase Chandelier Dresser Footlocker Hatstand Lamp Mattress "
            "Headboard Highboy Highchair Hutch Jardiniere Jewel-box Loveseat Lowboy Armoire Bolster Bunkbed Carpet",
            "Pew Screen Tapestry Trunk Washstand Bedstead Candelabra Divan "
            "Magazine-rack Nest-table Plinth Hassock Prie-dieu Recliner "
            "Rocker Safe Secretaire Semainier Shelf Spice-rack",
            "Hearth Loom Sideboard Sofa Stool Tallboy Throne Workbench "
            "Sconce Tabouret Tea-trolley Tuffet Umbrella-stand Valet-stand "
            "Vanity Vitrine Wine-rack Whatnot Windsor-chair Writing-desk",
        ),
    )
)

_GALAXY = Chain(
    (
        _category(
            "Galaxy",
            "Andara Boreon Cygnara Drakon Eridia Fornaxis Gemira Hydron "
            "Altheon Bellara Cassion Denebra Elnara Faloris Gorgonis Helion Isidara Jovara Kelion Lacerta",
            "Indara Juneon Kappara Lyrion Monoris Norma Orionis Pavona "
            "Mirzara Nebulon Ophira Perseon Quendara Rigelon Solvara Taurion Umbrion Vesperis Wezara Zenara",
            "Quasara Retica Sculptor Tucana Ursara Velora Whirlon Xerion "
            "Alcora Berenix Centaura Delphira Eridanor Fomalon Galdira Hadaron Ikarion Kallion Luparis Menkara",
            "Yildara Zetara Aquilon Bootara Carinor Doradon Equulon Furion "
            "Nashira Ossara Polarion Regulon Sirion Thubara Ursion Vegion Wolfara Xandara Yedara Zosmara",
            "Grusara Horolon Leonis Musca Octanor Phoenixa Sagitta Volanor "
            "Antaron Baldara Corvara Dracara Eltanor Fenara Gienara Hyadara Izaron Krazara Larion Mimosara",
        ),
        _category(
            "Planet",
            "Arvos Belith Corvan Dioneth Essar Farrol Gantos Helvar "
            "Ardeth Brevos Caldrix Delvath Erydon Fallax Gryphos Hestor Irradon Jaskar Kolvane Lethos",
            "Ithica Jovath Kessol Lumera Mirath Nexor Ombros Pyrrha "
            "Marduth Nerivar Ostrakh Pelagor Quillax Rendath Sorvane Tethra Undros Valkor Worlen Zephros",
            "Qaros Rhovan Selvik Tarsis Ulmora Vexil Wyndar Xylos "
            "Althos Brometh Cyrenos Drelvin Emberis Fyrdan Galvos Hyperia Iskar Jorrun Kethra Lorvath",
            "Yavara Zorath Ankhos Brimel Chiron-b Dantar Eluvia Fenris "
            "Melkar Nyssor Ophelar Porrix Querath Rustara Skarnos Thalor Ulvex Vorond Wexar Yttris",
            "Gorvath Hoth-nine Ixion Kalvar Leviad Morgath Nirvon Oberos "
            "Azmar Borrelin Cindros Dorvath Ephyros Frostara Grendor Halcyx Juvenor Krellis Pandros Zaltar",
        ),
        _category(
            "Island",
            "Anchorage Bayhead Coralcay Driftwood Eelpoint Foghaven Gullrock Heronkey "
            "Atollway Barnacle Clamshell Dolphin-bay Eastreef Fisherkey "
            "Gannet-rock Harborlight Inletside Jadecay Kelpholm Lighthouse",
            "Isleta Jettyhead Kelpshore Lagoona Mangrove Newholm Oysterbar Palmkey "
            "Marinersrest Narrowcay Oceanside Pelican-key Quietcove Rockpool "
            "Shellbank Turtleback Upwind Voyagecay Wavecrest Yawlport",
            "Quayside Reefend Sandspit Tidepool Undertow Vineland Whalebone Yarrowcay "
            "Ashholm Beachhead Castaway Deepcay Emeraldcay Flotsam "
            "Gracereef Hermit-key Ironreef Jellyfish-bay Kingfisher-key Lowtide",
            "Albatross-key Breakwater Cormorant-rock Dunehead Ebbstone Ferncay Goldshore Haloreef "
            "Mistholm Nautilus-bay Outerbank Porthaven Quartzreef Ripple-bay "
            "Seaspray Stormcay Terncay Urchin-rock Viridian Whitesand",
            "Inkwater Keystone Limpet-rock Mooncay Noonhead Opalreef Pearlbank Saltmarsh "
            "Anchor-rock Bluecay Coconut-key Duskreef Eddyholm Foamcrest "
            "Greenholm Highcay Icecay Lanternrock Murre-rock Northreef",
        ),
        _category(
            "Creature",
            "Axolotl Badger Caiman Dormouse Echidna Falcon Gecko Hedgehog "
            "Aardvark Beaver Capybara Dolphin Eland Flamingo Gazelle Hyena Ibex Jackrabbit Kudu Llama",
            "Ibis Jackal Kinkajou Lemur Marmot Narwhal Ocelot Pangolin "
            "Manatee Nightjar Opossum Pelican Quail Reindeer Seahorse Toucan Uakari Vicuna Walrus Zebra",
            "Quokka Raccoon Salamander Tapir Urchin Viper Wombat Yak "
            "Anteater Buffalo Chinchilla Dugong Ermine Frog Gopher Hamster Indri Jaybird Kakapo Leopard",
            "Alpaca Bison Civet Dingo Egret Ferret Gibbon Heron "
            "Meerkat Numbat Octopus Platypus Rabbit Squirrel Tortoise Vole Wolverine Xerus Weasel Stoat",
            "Iguana Jerboa Koala Lynx Mongoose Newt Otter Puffin "
            "Antelope Bandicoot Chameleon Dunnart Elk Fossa Giraffe Hippopotamus Kangaroo Moose Ostrich Porcupine",
        ),
    )
)

_FESTIVAL = Chain(
    (
        _category(
            "Festival",
            "Aprilfest Bluemoon Carnivale Daybreak Embernight Folkweek Glowfest Harvestide "
            "Appleday Balloonfest Candlefest Dancefest Easterfair Firstlight "
            "Gala Harborfest Icefair Junefest Kingsday Lightweek",
            "Icelight Jubilee Kitefest Lanternfest Midsummer Novafest Octavia Parade "
            "Mayfair Newyear Orchardfest Pageant Quiltfair Regatta "
            "Springfest Thanksgiving Umbrella-day Vinefest Wassail Yarnfest",
            "Quillfest Rivernight Solstice Tulipfest Unison Vintage Wintermarch Yuletide "
            "Autumnfest Booknight Cavalcade Drumfest Eveningtide Flowerfest "
            "Grapeday Honeyfest Inkfest Jestfest Kelpfest Lilacday",
            "Auroral Bonfire Cherryfest Dragonday Equinox Fiesta Gardenfest Hilltop "
            "Masquerade Northlight Oysterfest Pumpkinfest Queensday Rainfest "
            "Starnight Tidefest Unityday Velvetnight Windfest Zestfest",
            "Indiefest Jazzweek Kermesse Lakeside Maypole Nocturne Openair Prismfest "
            "Appletide Brassfest Cornfest Dawnfest Elderfest Fireweek "
            "Gourdfest Homecoming Jesterday Lammas Mistletide Snowfest",
        ),
        _category(
            "Stage",
            "Amphitheater Bandstand Catwalk Dais Esplanade Forum Gazebo Hippodrome "
            "Auditorium Balcony Cabaret Deck Exhibition Fairground "
            "Grandstand Hillside Jetty Lakestage Mainstage Opera-house",
            "Icebox Jukehall Kiosk Loft Marquee Niche Odeon Pavilion "
            "Platform Podium Playhouse Proscenium Quay Riverbank Rooftop Scaffold Stadium Terrace Theater Tribune",
            "Quadrangle Rostrum Soapbox Tent Upperdeck Veranda Warehouse Yardstage "
            "Apron Ballpark Boardwalk Bowl Canopy Circus Coliseum Concourse Cabana Dockside Eastwing Footbridge",
            "Arena Barnstage Courtyard Dome Encore Firepit Greenroom Hangar "
            "Glade Grotto Gymnasium Highdeck Hayloft Lido Market Moonstage Music-hall Oakstage Plaza Promenade",
            "Islet Junction Knoll Lawn Meadowstage Nightclub Orangery Pier "
            "Racecourse Ramp Speakeasy Sidestage Sundeck Tavern "
            "Treehouse Velodrome Vaudeville Wharf Westwing Woodstage",
        ),
        _category(
            "Band",
            "Acolytes Bandits Comets Drifters Echoes Foxtrots Giants Heralds "
            "Alchemists Buccaneers Corsairs Dreamers Explorers Fugitives "
            "Gladiators Highwaymen Islanders Jugglers Kingpins Lodestars",
            "Idlers Jesters Knights Lanterns Mavericks Nomads Outlaws Pilgrims "
            "Musketeers Navigators Optimists Pioneers Questers Renegades "
            "Skylarks Tempests Upstarts Vikings Warblers Zeniths",
            "Quartz-boys Rovers Sirens Troubadours Underdogs Vagrants Wanderers Yonders "
            "Astronauts Bards Cyclones Daredevils Emissaries Firebrands "
            "Gargoyles Harlequins Illusions Jubilants Kindreds Luminaries",
            "Anvils Brigade Cadets Dynamos Embers Fables Gamblers Hurricanes "
            "Monarchs Nightowls Odysseys Paladins Quicksteps Riddles "
            "Sentinels Thunderbolts Uplanders Vanguards Whirlwinds Zingers",
            "Infernos Jackdaws Kestrels Legends Mirages Novas Oracles Phantoms "
            "Archers Beacons Catalysts Drummers Envoys Falconers Guardians Hobgoblins Inventors Jokers Lancers Meteors",
        ),
        _category(
            "Instrument",
            "Accordion Bassoon Cello Dulcimer Euphonium Flute Guitar Harp "
            "Alphorn Balalaika Castanet Drum Fife Glockenspiel Hornpipe Koto Lap-harp Maraca Nyckelharpa Organ",
            "Icebell Jawharp Kazoo Lute Mandolin Ney Oboe Piccolo "
            "Piano Psaltery Qanun Rattle Shamisen Tabla Trumpet Tuba Vibraphone Violin Zither Zurna",
            "Quena Recorder Sitar Trombone Ukulele Viola Whistle Xylophone "
            "Bagpipe Bodhran Bongo Bouzouki Bugle Celesta Charango Cimbalom Cittern Clavichord Concertina Conga",
            "Autoharp Banjo Clarinet Djembe Erhu Fiddle Gong Harmonica "
            "Cornet Cowbell Crumhorn Cymbal Didgeridoo Duduk Flugelhorn Gamelan Guiro Guqin Harmonium Harpsichord",
            "Kalimba Lyre Marimba Ocarina Pianola Rebec Saxophone Timpani "
            "Hurdy-gurdy Kora Melodica Mellophone Oud Panpipe Pipa Sackbut Shakuhachi Spinet Tambourine Theremin",
        ),
    )
)

_VALLEY = Chain(
    (
        _category(
            "Valley",
            "Ambervale Birchdale Cloverglen Dovedale Elderdale Foxglen Goldenvale Hazeldale "
            "Aspenvale Brookvale Cressglen Deerdale Edgevale Finchglen "
            "Gorsedale Hollyglen Ivoryvale Jaydale Kestrelglen Lilyvale",
            "Irisvale Juniperglen Kinvale Larkdale Maplevale Nettleglen Oakendale Primrosedale "
            "Meadowglen Newtdale Oatvale Pinedale Quincevale Ravendale "
            "Silverglen Tansydale Upperglen Vinedale Wrendale Yewglen",
            "Quaildale Rushvale Sorrelglen Thistledale Umbervale Violetdale Willowglen Yarrowdale "
            "Applevale Bluebellglen Clarydale Dewglen Eastvale Fawndale "
            "Greenglen Heatherglen Inkdale Junedale Kiteglen Laurelglen",
            "Alderglen Brackendale Cedarvale Daisyglen Emberglen Ferndale Grassvale Heathdale "
            "Mistvale Nightglen Otterdale Pebbleglen Quartzdale Roseglen "
            "Stonevale Teaselglen Ulmvale Verbena-glen Waterdale Zephyrvale",
            "Ivydale Jasperglen Kittiwake-vale Lindendale Mossglen Northvale Orchiddale Poppyglen "
            "Acornglen Berryvale Crowdale Duskvale Elmdale Fallowglen "
            "Goldglen Honeydale Lavenderdale Mintvale Springdale Sunvale",
        ),
        _category(
            "Farm",
            "Applecroft Barleycroft Cowslip Dairyhill Eastacre Flintfield Goosegreen Haywick "
            "Alderacre Bramblecroft Cherryfield Dovecote Elderfield Foxcroft "
            "Greenacre Hillcroft Ivyfield Juniperacre Kilncroft Larkfield",
            "Inglefield Jayacre Kingsacre Longmeadow Millbrook Newacre Oldbarn Plowfield "
            "Maplecroft Northacre Oatfield Peartree Quinceacre Rosecroft "
            "Stonefield Thornacre Umberfield Valeacre Wheatcroft Yarrowfield",
            "Quarryacre Ryefield Sunnyacre Turnpike Upland Vetchfield Westacre Yeomanry "
            "Barnfield Cloveracre Deercroft Eastcroft Fernacre Goldfield "
            "Harrowfield Inkcroft Jaycroft Kitefield Lindenacre Meadowcroft",
            "Ashcroft Beechacre Cornwick Dewfield Elmcroft Furrow Grangehill Hopfield "
            "Nettlecroft Oxfield Pondacre Rookfield Sheepwick Tillerton "
            "Underhill Vinecroft Willowacre Yewacre Shepherdsrest Mossfield",
            "Innisfree Jollyacre Knollcroft Lambsgate Marshcroft Nutfield Orchardton Pigeonhill "
            "Applegarth Bulrush Coltfield Ducksgate Ewecroft Flaxacre "
            "Gosling-hill Hensgate Loamfield Muleacre Ploughwick Southcroft",
        ),
        _category(
            "Crop",
            "Artichoke Beetroot Cabbage Dill Eggplant Fennel Garlic Horseradish "
            "Alfalfa Barley Carrot Cassava Chickpea Coriander Cotton Cucumber Fava Fenugreek Lettuce Maize",
            "Indigo Jicama Kale Leek Mustard Napa-leaf Okra Parsnip "
            "Oat Parsley Pea Peanut Pepper Potato Rutabaga Rice Rye Sesame Shallot Soybean",
            "Quinoa Radish Spinach Turnip Udo Vetch Watercress Yam "
            "Squash Sugarcane Sunflower Taro Tomato Wheat Zucchini Amaranth Arugula Basil Buckwheat Cauliflower",
            "Asparagus Broccoli Celery Daikon Endive Flax Ginger Hops "
            "Chard Chicory Chive Clover Cowpea Cumin Edamame Escarole Gherkin Gourd Lavender Lupin",
            "Jute Kohlrabi Lentil Millet Nettle Onion Pumpkin Sorghum "
            "Marjoram Melon Mint Oregano Rhubarb Rosemary Saffron Sage Salsify Sorrel Teff Thyme",
        ),
        _category(
            "Insect",
            "Ant Beetle Cicada Dragonfly Earwig Firefly Grasshopper Hornet "
            "Alderfly Antlion Assassin-bug Backswimmer Bedbug Blowfly "
            "Botfly Bumblebee Caddisfly Chafer Chinch-bug Cockroach",
            "Inchworm Junebug Katydid Ladybug Mantis Needlefly Oilbug Planthopper "
            "Cranefly Cutworm Deerfly Dobsonfly Dung-beetle Flea "
            "Fruitfly Gallfly Glowworm Greenfly Hairstreak Honeybee",
            "Queenbee Rootworm Sawfly Termite Underwing Vinegar-fly Weevil Yellowjacket "
            "Horntail Horsefly Housefly Hoverfly Ichneumon Lanternfly "
            "Leafcutter Leafhopper Locust Louse Mealybug Midge",
            "Aphid Butterfly Cricket Damselfly Emperor-moth Froghopper Gnat Hawkmoth "
            "Mosquito Mudwasp Orange-tip Peppered-moth Psyllid Robberfly "
            "Scarab Scorpionfly Shieldbug Silkworm Silverfish Skipper",
            "Lacewing Mayfly Moth Owlfly Pondskater Sandfly Thrips Wasp "
            "Snakefly Spittlebug Springtail Stagbeetle Stinkbug Stonefly "
            "Swallowtail Treehopper Tsetse-fly Waterstrider Whitefly Woodwasp",
        ),
    )
)

CHAINS: tuple[Chain, ...] = (_KINGDOM, _GALAXY, _FESTIVAL, _VALLEY)
"""The whole vocabulary, in a fixed order: token ids depend on it."""

LETTERS: str = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
"""The 52 symbols that solutions bind values to (Part 2.1, Algorithm 6)."""


def all_names(chains: int = 4, subcategories: int = 5, names: int = 20) -> list[str]:
    """Return `names` of each of the first `subcategories` of the first `chains`, categories too, in a fixed order."""
    found: list[str] = []
    for chain in CHAINS[:chains]:
        for category in chain.categories:
            found.append(category.name)
            for items in category.subcategories[:subcategories]:
                found.extend(items[:names])
    return found


CATEGORY_OF: dict[str, str] = {
    item: category.name
    for chain in CHAINS
    for category in chain.categories
    for items in category.subcategories
    for item in items
}
"""The category of every item name."""
