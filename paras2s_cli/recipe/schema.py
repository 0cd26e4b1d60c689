"""All kinds of recipes, each with its fields' defaults and what they mean."""

from paras2s_cli.recipe.aligning import AlignRecipe, DistillRecipe
from paras2s_cli.recipe.benching import BenchRecipe
from paras2s_cli.recipe.judging import JudgeRecipe, PolytoneRecipe
from paras2s_cli.recipe.speaking import BaseRecipe, SftRecipe

RECIPES = (PolytoneRecipe, JudgeRecipe, BaseRecipe, SftRecipe, DistillRecipe, AlignRecipe, BenchRecipe)
