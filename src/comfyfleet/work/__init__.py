from comfyfleet.work.units import *
from comfyfleet.work.results import *
from comfyfleet.work._tmp import *
from comfyfleet.work._tmp import Event, Instruction
from comfyfleet.work.units import Prompt
