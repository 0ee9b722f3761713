"""Captions that are about anything: everyday names in plain prompts.

    training_captions()    # for distillation: what the start knows is asked with these
    held_out_captions()    # for the retention score: other names, other prompts

The two have no name in common, so a retention score does not ask for what was just distilled. The
names were written for this package; they cover people, animals, plants, food, things of the house,
clothing, tools, vehicles, buildings, landscapes, activities, materials and patterns.
"""

from __future__ import annotations

from pocketclip.prompts import fill_templates

_NAMES = """
man; woman; child; baby; old couple; crowd; football team; musician; chef; doctor; farmer; soldier;
face; hand; pair of eyes; hairstyle; beard; tattoo; smile; wedding; dog; cat; puppy; kitten; horse;
cow; sheep; goat; pig; chicken; duck; swan; owl; eagle; parrot; pigeon; penguin; lion; tiger; bear;
wolf; fox; rabbit; squirrel; mouse; elephant; giraffe; zebra; monkey; gorilla; kangaroo; deer;
camel; whale; dolphin; shark; goldfish; crab; octopus; jellyfish; turtle; frog; snake; lizard;
crocodile; spider; butterfly; bee; ant; beetle; snail; tree; palm tree; pine forest; bush; grass;
rose; tulip; sunflower; daisy; orchid; cactus; fern; mushroom; autumn leaf; moss; potted plant;
bouquet; apple; banana; pear; grapes; cherry; strawberry; pineapple; melon; mango; coconut; carrot;
potato; tomato; onion; garlic; cabbage; broccoli; pumpkin; pepper; corn; salad; soup; bread; cheese;
egg; rice; noodles; pizza; hamburger; sandwich; sausage; steak; fried fish; sushi; pancake; cake;
doughnut; cookie; chocolate bar; ice cream; cup of coffee; cup of tea; glass of water;
bottle of wine; glass of beer; carton of milk; carton of juice; jar of honey; can of soda;
packet of crisps; plate; bowl; fork; knife; spoon; frying pan; kettle; oven; refrigerator; toaster;
sink; bathtub; toilet; towel; soap; toothbrush; mirror; bed; pillow; sofa; armchair; dining table;
desk; bookshelf; wardrobe; lamp; candle; carpet; curtain; window; door; staircase; clock; vase;
picture frame; fireplace; washing machine; vacuum cleaner; broom; bucket; rubbish bin; basket;
cardboard box; plastic bag; suitcase; backpack; handbag; wallet; umbrella; hat; cap; helmet; scarf;
gloves; shirt; trousers; jeans; skirt; dress; suit; coat; sweater; socks; shoes; boots; sandals;
ring; necklace; watch; pair of glasses; hammer; screwdriver; saw; drill; pair of pliers; nail;
screw; rope; ladder; axe; shovel; wheelbarrow; paint brush; scissors; pencil; pen; notebook; book;
newspaper; letter; map; postage stamp; coin; banknote; credit card; key; padlock; laptop; keyboard;
computer screen; printer; mobile phone; telephone; television; radio; loudspeaker; headphones;
camera; microscope; telescope; light bulb; battery; electric plug; circuit board; robot; syringe;
pill; bandage; x-ray; thermometer; wheelchair; guitar; piano; violin; drum; trumpet; flute;
football; basketball; tennis racket; baseball bat; golf ball; skateboard; surfboard; pair of skis;
ice skates; bicycle; motorcycle; car; sports car; taxi; bus; truck; van; fire engine; ambulance;
police car; tractor; excavator; crane; train; tram; aeroplane; helicopter; hot-air balloon; rocket;
satellite; sailing boat; rowing boat; ferry; cargo ship; submarine; anchor; wheel; engine; tyre;
traffic light; road sign; parking meter; petrol station; street; motorway; bridge; tunnel; railway;
airport; harbour; house; block of flats; skyscraper; castle; church; mosque; temple; lighthouse;
windmill; barn; factory; power station; school; hospital; library; museum; theatre; stadium;
supermarket; market stall; restaurant; kitchen; bathroom; bedroom; office; classroom; garden; fence;
swimming pool; playground; bench; fountain; statue; flag; tent; campfire; mountain; volcano; cliff;
desert; beach; island; lake; river; waterfall; sea wave; iceberg; glacier; cave; field; meadow;
vineyard; rice terrace; jungle; swamp; sky; cloud; rainbow; lightning; storm; snow; fog; sunset;
night sky; moon; planet; galaxy; satellite image; aerial view; dancing; running; swimming; climbing;
cooking; reading; sleeping; fishing; driving; singing; painting; meeting; concert; birthday party;
football match; fireworks; parade; brick wall; wooden floor; marble; rusty metal; glass; leather;
wool; silk; sand; gravel; stripes; dots; checks; spiral; circle; square; triangle; star; heart;
arrow; number; word; page of text; handwriting; logo; poster; cartoon; drawing; oil painting;
sculpture; bar chart; diagram; floor plan; screenshot; blurred picture; black and white photo
"""
_TRAINING = ("a photo of {}", "{}", "a picture of {}")
_HELD_OUT = ("an image of {}",)


def _names() -> list[str]:
    return [" ".join(name.split()) for name in _NAMES.split(";")]


def training_captions() -> tuple[str, ...]:
    """Return the captions to distil with: every other name, in one of three prompts each."""
    return tuple(
        fill_templates([name], [_TRAINING[number % len(_TRAINING)]])[0]
        for number, name in enumerate(_names()[::2])
    )


def held_out_captions() -> tuple[str, ...]:
    """Return the captions to measure retention with: the other names, in another prompt."""
    return tuple(fill_templates(_names()[1::2], _HELD_OUT))
