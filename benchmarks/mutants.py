"""Do the tests notice small errors? Breaks one line of the package at a time and runs the test that should see it.

    python benchmarks/mutants.py [WORD]

With a word, only the mutants whose file or description has it, and nothing is recorded. Each mutant names one narrow
test; a mutant that its test does not see, survives. The package and its tests are copied to a temporary folder first.

Each test runs in a fork of a process that has imported Lightning and torch already, for that takes longer than most of
the tests. What a test starts for several processes is forked as well.
"""

import functools
import multiprocessing
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import NamedTuple

import lightly.loss  # noqa: F401  of the tests
import pytest
import torch.multiprocessing
import torchvision.transforms.v2.functional  # noqa: F401  of the data
from record import ROOT, record

import ssl_zoo.methods  # noqa: F401  for what it imports; forks import the copy

AT_ONCE = 2
MINUTES = 10       # a limit for hangs
PASSED, FAILED = pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED
FORK = multiprocessing.get_context("fork")


class Mutant(NamedTuple):
    """One error."""

    file: str       # in the package
    old: str        # stands in the file exactly once
    new: str
    test: str       # file and name, in tests/
    breaks: str


MUTANTS = [
    # losses
    Mutant("losses.py", " + len(z1) * distributed.rank()", "",
           "test_distributed.py::test_nt_xent_and_the_averaged_gradient_do_not_depend_on_the_number_of_processes",
           "every process takes rank 0's rows for its own"),
    Mutant("losses.py", "+ len(query) * distributed.rank()", "",
           "test_distributed.py::test_losses_of_keys_weights_and_correlations_do_not_depend_on_the_number_of_processes",
           "every process takes rank 0's keys for its own"),
    Mutant("losses.py", "every = distributed.gather(positive / sigma)", "every = positive / sigma",
           "test_distributed.py::test_losses_of_keys_weights_and_correlations_do_not_depend_on_the_number_of_processes",
           "DCLW balances weights on each process alone"),
    Mutant("losses.py", "    z = distributed.gather(z)\n", "",
           "test_distributed.py::test_losses_of_keys_weights_and_correlations_do_not_depend_on_the_number_of_processes",
           "Barlow Twins standardises on each process alone"),
    Mutant("losses.py", "Products(rows, keys, itself_and_partner)", "Products(rows, keys, itself_and_partner[:, :1])",
           "test_losses.py::test_dcl_of_the_toy_tensors_is_the_references_number",
           "DCL keeps the positive in the denominator"),
    Mutant("losses.py", "(negative / temperature).logsumexp(1)", "negative.logsumexp(1)",
           "test_losses.py::test_contrast_is_the_papers_sum", "no temperature divides the negatives"),
    Mutant("losses.py", "- weight * positive", "+ weight * positive",
           "test_losses.py::test_contrast_is_the_papers_sum", "a decoupled positive is pushed away"),
    Mutant("losses.py", "F.softplus(rivals - positive", "F.softplus(rivals + positive",
           "test_losses.py::test_info_nce_of_a_perfect_query_against_an_orthogonal_queue_has_its_closed_form",
           "the positive is pushed away"),
    Mutant("losses.py", "return 2 - len(every)", "return 2 + len(every)",
           "test_losses.py::test_dclws_weights_are_one_on_average_at_most_two_and_larger_for_a_harder_pair",
           "DCLW's weights have the other sign"),
    Mutant("losses.py", "@torch.no_grad()\ndef pair_weights", "def pair_weights",
           "test_losses.py::test_dclws_weights_carry_no_gradient", "a gradient passes through DCLW's weights"),
    Mutant("losses.py", "cross_similarities(query, key.detach())", "cross_similarities(query, key)",
           "test_losses.py::test_no_gradient_reaches_the_keys_of_a_batch", "a gradient reaches MoCo v3's keys"),
    Mutant("blocks.py", "                pulls += logits.sub_(sums).exp_().mul_(weight)\n", "                pass\n",
           "test_blocks.py::test_in_blocks_losses_and_gradients_are_those_of_the_matrix",
           "a row gets no gradient as the key of others"),
    Mutant("blocks.py", ".scatter_(1, left_out[block], float(\"-inf\"))", "",
           "test_blocks.py::test_in_blocks_losses_and_gradients_are_those_of_the_matrix",
           "in blocks a row is its own negative"),
    Mutant("blocks.py", "total * shrunk + heat", "total + heat",
           "test_blocks.py::test_against_a_queue_losses_and_gradients_in_blocks_are_those_of_the_matrix",
           "a queue's blocks are added with other maxima"),
    Mutant("blocks.py", "torch.addmm(mean * shrunk, heat, part)", "torch.addmm(mean, heat, part)",
           "test_blocks.py::test_against_a_queue_losses_and_gradients_in_blocks_are_those_of_the_matrix",
           "a query's gradient has parts of other maxima"),
    Mutant("blocks.py", "torch.cat(means) / temperature)", "torch.cat(means))",
           "test_blocks.py::test_against_a_queue_losses_and_gradients_in_blocks_are_those_of_the_matrix",
           "a query's gradient lacks the temperature"),
    Mutant("blocks.py", "self.left_out is None and not self.keys.requires_grad", "self.left_out is None",
           "test_blocks.py::test_a_queue_with_a_gradient_of_its_own_has_it", "keys lose their gradient"),
    Mutant("features.py", "about.images, *shape)", "about.images, *shape[::-1])",
           "test_features.py::test_maps_stand_beside_the_features_in_a_file_and_in_memory",
           "maps are written with other axes"),
    Mutant("blocks.py", "    if matrices[0].few:\n        return of(slice(None))\n", "    return of(slice(None))\n",
           "test_blocks.py::test_a_function_by_rows_is_that_of_the_whole", "AMCL's matrices are made whole"),
    Mutant("losses.py", "target.detach(), dim=-1)", "target, dim=-1)",
           "test_losses.py::test_negative_cosine_is_from_minus_one_to_one_and_no_gradient_reaches_its_target",
           "a gradient reaches SimSiam's target"),
    Mutant("losses.py", "return terms.mean() if", "return terms.sum() if",
           "test_losses.py::test_nt_xents_sum_and_mean_are_those_of_its_rows_with_the_first_views_in_front",
           "the mean of a loss is its sum"),
    Mutant("losses.py", "F.normalize(query, dim=-1), F.normalize(key, dim=-1)\n    return",
           "F.normalize(query, dim=-1), key\n    return",
           "test_losses.py::test_queue_similarities_have_a_row_for_each_query_and_a_column_for_each_key",
           "a key is not normalised"),
    Mutant("losses.py", "enabled=False", "enabled=True",
           "test_losses.py::test_nt_xent_takes_no_notice_of_autocast", "losses compute in half precision"),
    # adaptive
    Mutant("adaptive.py", "torch.sigmoid(-products)", "torch.sigmoid(products)",
           "test_losses.py::test_adaptive_contrast_with_learned_temperatures_is_the_references_number",
           "like pairs get a high temperature"),
    Mutant("adaptive.py", "omega(positive_temperature, width) - negative_omega",
           "omega(positive_temperature, width) + negative_omega",
           "test_losses.py::test_equal_temperatures_need_no_regulariser", "both regularisers have one sign"),
    # memory
    Mutant("memory.py", "(self.head + torch.arange(", "(self.head + 1 + torch.arange(",
           "test_memory.py::test_a_queue_of_whole_batches_holds_the_last_of_them_where_they_were_written",
           "a queue writes one slot further"),
    Mutant("memory.py", "(self.head + batch) % size)", "(self.head + batch - 1) % size)",
           "test_memory.py::test_a_queue_holds_the_last_keys_whatever_the_sizes_of_batches",
           "each batch overwrites a new key"),
    Mutant("memory.py", "return self.keys.clone()", "return self.keys",
           "test_memory.py::test_a_snapshot_is_the_queue_before_later_keys_and_lets_a_loss_go_back_through_it",
           "a snapshot changes with the queue"),
    Mutant("memory.py", "[distributed.rank()::distributed.world_size()]", "[::distributed.world_size()]",
           "test_methods.py::test_two_processes_balance_swavs_codes_with_each_key_of_the_queue_once",
           "all processes balance the first share"),
    Mutant("memory.py", "online, 1 - momentum)", "online, momentum)",
           "test_memory.py::test_every_parameter_keeps_its_share_of_itself_and_takes_the_rest_from_its_online_one",
           "momentum is the share taken"),
    Mutant("memory.py", "back = distributed.mine(order.argsort())", "back = distributed.mine(order)",
           "test_distributed.py::test_keys_are_encoded_with_shuffled_images_of_all_processes_and_come_back_to_their_own",
           "keys come back to other images"),
    Mutant("memory.py", "(processes := distributed.world_size()) == 1", "(processes := distributed.world_size()) >= 1",
           "test_distributed.py::test_keys_are_encoded_with_shuffled_images_of_all_processes_and_come_back_to_their_own",
           "keys are not shuffled between processes"),
    Mutant("grouped.py", "for group in range(groups)]).argsort()", "for group in range(groups)])",
           "test_grouped.py::test_one_pass_is_what_a_pass_over_each_group_makes", "grouped keys stay in groups' order"),
    Mutant("grouped.py", "torch.arange(groups - 1, -1, -1,", "torch.arange(groups,",
           "test_grouped.py::test_one_pass_is_what_a_pass_over_each_group_makes",
           "the running statistics forget the newest group first"),
    Mutant("memory.py", "self.value), 1 - self.momentum)", "self.value), self.momentum)",
           "test_memory.py::test_a_centre_nears_a_constant_mean_as_the_geometric_series_says",
           "a centre's momentum is the share taken"),
    Mutant("memory.py", "sums = distributed.gather(sums[None]).sum(0)", "sums = sums + 0",
           "test_memory.py::test_a_centre_is_that_of_the_rows_of_all_processes_and_no_rows_do_not_move_it",
           "each process has its own centre"),
    Mutant("memory.py", '"amax")[index]', '"amin", include_self=False)[index]',
           "test_memory.py::test_a_table_keeps_the_last_row_of_an_image_and_starts_with_its_columns_values",
           "an image's first row counts"),
    Mutant("memory.py", """        index = distributed.gather(index)
        rows = torch""", """        for name, new in values.items():
            self.get_buffer(name)[index] = new
        return
        rows = torch""",
           "test_memory.py::test_a_table_of_two_processes_is_that_of_one_with_images_that_repeat",
           "each process has its own table"),
    # assignment
    Mutant("assignment.py", "masses.logsumexp(0)).log_softmax(1)", "masses.logsumexp(0)).log_softmax(0)",
           "test_assignment.py::test_a_samples_code_sums_to_one_however_few_the_iterations",
           "prototypes, not samples, sum to one"),
    Mutant("assignment.py", "            own =", "            codes = codes.log_softmax(1)\n            own =",
           "test_assignment.py::"
           "test_codes_ignore_what_is_added_to_all_scores_of_a_prototype_for_its_step_comes_first",
           "samples are balanced before prototypes"),
    Mutant("assignment.py", "distributed.gather(own.logsumexp(0, keepdim=True))", "own.logsumexp(0, keepdim=True)",
           "test_assignment.py::test_codes_do_not_depend_on_which_process_holds_a_sample",
           "each process balances its own samples"),
    # mixing
    Mutant("mixing.py", "dtype=np.float32) / 2)", "dtype=np.float32))",
           "test_mixing.py::test_drawn_mixtures_pair_two_different_keys_and_keep_the_key_the_greater_part",
           "the query is the greater part"),
    Mutant("mixing.py", "(first + 1 + generator", "(first + generator",
           "test_mixing.py::test_drawn_mixtures_pair_two_different_keys_and_keep_the_key_the_greater_part",
           "a key is mixed with itself"),
    Mutant("mixing.py", "torch.lerp(second, first,", "torch.lerp(first, second,",
           "test_mixing.py::test_the_share_of_a_pair_is_the_first_ones", "a pair's shares are swapped"),
    Mutant("mixing.py", "torch.cat([lengths,", "torch.cat([torch.ones_like(lengths),",
           "test_mixing.py::test_cosines_and_gradients_are_those_of_mixtures_that_are_constants",
           "mixtures of two keys are shorter than 1"),
    Mutant("mixing.py", "(1 + single.detach())", "(1 + single)",
           "test_mixing.py::test_cosines_and_gradients_are_those_of_mixtures_that_are_constants",
           "a mixture follows its query"),
    Mutant("mixing.py", ".amax(1).topk(count, sorted=False)", ".amin(1).topk(count, sorted=False)",
           "test_mixing.py::test_the_largest_numbers_are_those_that_sorting_finds",
           "the hardest keys are sought in the wrong groups"),
    Mutant("mixing.py", "distributed.mine(part)", "part[:batch]",
           "test_mixing.py::test_two_processes_share_the_draw_of_one", "all processes mix alike"),
    # neighbours
    Mutant("evaluation/nearest.py", "if missed.any():", "if missed.all():",
           "test_knn.py::test_queries_of_which_the_guess_is_too_high_are_searched_for_again",
           "a guess that is too high loses neighbours"),
    Mutant("evaluation/nearest.py", "cosines.masked_fill_(cosines < wrong, -torch.inf)", "cosines",
           "test_knn.py::test_neighbours_at_right_angles_are_all_found",
           "neighbours at right angles are lost"),
    # schedules and optimiser
    Mutant("schedules.py", "if progress < self.warmup:", "if progress <= self.warmup:",
           "test_schedules.py::test_without_warmup_it_is_half_a_cosine_from_one_to_zero",
           "no warm-up divides by zero"),
    Mutant("schedules.py", "(progress - self.warmup) / (1 - self.warmup)", "progress - self.warmup",
           "test_schedules.py::test_warmup_cosine_rises_in_a_line_and_falls_as_half_a_cosine",
           "the cosine does not end"),
    Mutant("optim.py", '"weight_decay": 0.0, **options', "**options",
           "test_optim.py::test_the_optimizers_decay_reaches_the_first_group_alone", "biases and norms decay"),
    Mutant("optim.py", 'made["lr"] * group.lr_scale', 'made["lr"]',
           "test_optim.py::test_a_groups_rate_decay_and_schedules_are_its_own_and_the_others_keep_the_recipes",
           "a group learns at the others' rate"),
    # distributed
    Mutant("distributed.py", "        dist.all_reduce(grad) ", "        #",
           "test_distributed.py::test_the_gradient_of_gathered_rows_is_summed_over_the_losses_of_all_processes",
           "a gradient is of one loss alone"),
    Mutant("distributed.py", "grad.clone(memory_format=torch.contiguous_format)", "grad.contiguous()",
           "test_distributed.py::test_gather_leaves_the_gradient_of_what_is_added_to_its_rows_alone",
           "a shared gradient is overwritten"),
    Mutant("distributed.py", "rows[share * rank():share * (rank() + 1)]", "rows[rank()::world_size()]",
           "test_memory.py::test_keys_of_several_processes_are_encoded_among_the_images_that_the_shuffle_brings_together",
           "shares are strides, not blocks"),
    Mutant("distributed.py", "return order[F.pad(places[order].diff() != 0, (1, 0), value=True)[:len(order)]]",
           "return order",
           "test_memory.py::test_rows_of_a_whole_set_come_in_its_order_once_on_every_process",
           "an image stays in twice"),
    Mutant("distributed.py", "[self.seed, self.epoch, self.batch]", "[self.seed, self.epoch, self.batch, self.rank]",
           "test_memory.py::test_a_stream_is_a_function_of_name_seed_epoch_and_batch_and_of_no_rank",
           "a stream differs between processes"),
    # views
    Mutant("views/tables.py", 'table["flips"][..., 0] = u["flip"]', 'table["flips"][..., 0] = u["vertical_flip"]',
           "test_tables.py::test_columns_are_independent_of_one_another", "both flips are drawn as one"),
    Mutant("views/tables.py", "np.stack([top, left, height, width], -1)", "np.stack([left, top, height, width], -1)",
           "test_tables.py::test_a_crop_is_a_pixel_or_more_of_the_image", "a crop's top is its left"),
    Mutant("views/tables.py", "(tall - height + 1))", "(tall - height))",
           "test_tables.py::test_a_crop_starts_with_the_same_chance_at_every_pixel_where_it_fits",
           "no crop ends in the last row"),
    Mutant("views/tables.py", "shared >= spec.overlap", "shared <= spec.overlap",
           "test_tables.py::test_every_view_shares_as_much_with_the_first_as_its_row_asks",
           "views overlap at most so much"),
    Mutant("views/tables.py", "[left / wide, top / tall,", "[top / tall, left / wide,",
           "test_tables.py::test_a_box_is_left_top_right_bottom_as_shares_of_its_own_image",
           "a box's left is its top"),
    Mutant("views/tables.py", "ratio = np.exp(low + (high - low)",
           "ratio = spec.ratio[0] + ((spec.ratio[1] - spec.ratio[0])",
           "test_tables.py::test_the_share_of_the_area_and_the_logarithm_of_the_ratio_are_even_where_every_crop_fits",
           "ratios are even, not their logarithms"),
    Mutant("views/crops.py", "outputs - 1 - output, output)", "outputs - output, output)",
           "test_crops.py::test_weights_of_an_output_sum_to_the_total_and_mirror_in_the_box",
           "a flip is a pixel off"),
    Mutant("views/crops.py", "flipped, vertically = crops", "vertically, flipped = crops",
           "test_crops.py::test_each_view_of_each_image_has_its_own_box_and_flips", "the two flips are swapped"),
    Mutant("views/crops.py", "top, left, height, width, flipped", "left, top, height, width, flipped",
           "test_crops.py::test_each_view_of_each_image_has_its_own_box_and_flips", "a crop's columns are swapped"),
    Mutant("views/crops.py", "diagonal = torch.maximum(", "diagonal = torch.minimum(",
           "test_crops.py::test_distances_of_cells_are_measured_in_the_larger_diagonal_of_each_image_by_itself",
           "distances are in the smaller diagonal"),
    Mutant("views/crops.py", "[:, None, None], -grid, grid)", "[:, None, None], grid, grid)",
           "test_crops.py::test_a_map_of_coordinates_holds_in_another_view_s_frame_what_that_frame_says",
           "a flipped map is sampled unflipped"),
    Mutant("views/colour.py", "factor[:, None, None], alpha=6)", "factor[:, None, None], alpha=-6)",
           "test_colour.py::test_a_third_of_a_turn_of_hue_moves_red_to_green_to_blue", "hue turns the other way"),
    Mutant("views/colour.py", "+ 6 * turns", "- 6 * turns",
           "test_colour.py::test_jitter_of_all_is_torchvision_s_four_changes_in_each_image_s_own_order",
           "a GPU's hue turns the other way"),
    Mutant("views/colour.py", "for operation in order:", "for operation in reversed(list(order)):",
           "test_colour.py::test_jitter_is_torchvision_s_four_changes_in_the_order_that_it_is_given",
           "jitter runs in the reverse order"),
    Mutant("views/colour.py", "images >= threshold", "images > threshold",
           "test_colour.py::test_solarize_inverts_from_the_threshold_on_as_torchvision_does_with_bytes",
           "solarise spares the threshold"),
    Mutant("views/colour.py", "(-0.5 * (distance", "(-1.0 * (distance",
           "test_colour.py::test_blur_spreads_a_point_as_a_gaussian", "a blur's sigma is too small"),
    # data
    Mutant("data/sources.py", "yield *batch[:3], request.key or PLAIN", "yield *batch[:3], PLAIN",
           "test_data.py::test_a_loader_hands_over_the_key_of_each_batch", "every batch has the plain key"),
    Mutant("data/sources.py", "Request(batch[rank], Key(", "Request(batch[0], Key(",
           "test_data.py::test_processes_share_the_batch_that_one_process_would_have", "all processes see one share"),
    Mutant("data/orders.py", "SeedSequence([seed, epoch], spawn_key=(0,))).permutation(images)",
           "SeedSequence([seed, 0], spawn_key=(0,))).permutation(images)",
           "test_data.py::test_order_differs_between_epochs_and_between_seeds", "every epoch has one order"),
    Mutant("data/sources.py", "self.shown = 0 if self.running else self.shown", "pass",
           "test_data.py::test_a_loader_resumes_after_the_batches_that_were_seen_and_only_once",
           "every epoch starts in the middle"),
    # methods
    Mutant("methods/simclr.py", "for a, b in self.pairs])", "for a, b in self.pairs[:1]])",
           "test_methods.py::test_methods_of_the_batch_compare_each_global_view_with_every_other_view",
           "SimCLR compares the first two views alone"),
    Mutant("methods/dcl.py", '"weighted_decoupled", self.sigma)', '"weighted_decoupled")',
           "test_methods.py::test_dclws_weights_have_the_temperature_that_it_is_given", "DCLW's sigma is not used"),
    Mutant("methods/moco.py", "[(x1, x2), (x2, x1)] if", "[(x1, x2), (x1, x2)] if",
           "test_methods.py::test_mocos_symmetric_loss_of_the_toy_tensors_is_the_references_mean",
           "the symmetric loss is one-sided"),
    Mutant("methods/moco.py", "            similarities = queue_similarities(query, key, queue)",
           "            self.queue.enqueue(key, batch.index)\n"
           "            similarities = queue_similarities(query, key, self.queue.snapshot())",
           "test_methods.py::test_moco_finds_keys_among_a_queue_that_does_not_know_them_yet",
           "keys are among their own negatives"),
    Mutant("methods/moco.py", "update(momentum=self.momentum)", "update(momentum=1 - self.momentum)",
           "test_methods.py::test_averages_move_once_a_step_by_one_minus_the_momentum",
           "MoCo's momentum is the share taken"),
    Mutant("methods/moco_v3.py", "((q1, k2), (q2, k1))", "((q1, k1), (q2, k2))",
           "test_methods.py::test_moco_v3_finds_keys_among_the_batchs_and_multiplies_by_twice_the_temperature",
           "a view finds its own key"),
    Mutant("methods/moco_v3.py", "return 2 * self.temperature * (", "return 2 * (",
           "test_methods.py::test_moco_v3_finds_keys_among_the_batchs_and_multiplies_by_twice_the_temperature",
           "no temperature multiplies the loss"),
    Mutant("methods/swav.py", "if v != g]", "]",
           "test_methods.py::test_swavs_other_views_predict_the_codes_of_each_global_one_and_of_a_full_queue",
           "a view predicts its own codes"),
    Mutant("methods/swav.py", "self.iterations, counted)[-len(z):]", "self.iterations, counted)[:len(z)]",
           "test_methods.py::test_swavs_other_views_predict_the_codes_of_each_global_one_and_of_a_full_queue",
           "a view gets the queue's codes"),
    Mutant("methods/swav.py", "queue.share()", "queue.keys",
           "test_methods.py::test_two_processes_balance_swavs_codes_with_each_key_of_the_queue_once",
           "each process balances the whole queue"),
    Mutant("methods/swav.py", "self.global_step < self.freeze_steps", "self.global_step <= self.freeze_steps",
           "test_methods.py::test_prototypes_have_unit_norm_at_every_step_and_stay_where_they_are_while_frozen",
           "prototypes freeze a step too long"),
    Mutant("methods/barlow_twins.py", "(c.diagonal() - 1)", "(c.diagonal() + 1)",
           "test_methods.py::test_barlow_twins_is_its_two_sums", "two views become opposite"),
    Mutant("methods/mochi.py", "batch.key.epoch >= self.start", "batch.key.epoch > self.start",
           "test_methods.py::test_mochi_adds_mixtures_of_each_querys_hardest_keys",
           "mixing starts an epoch late"),
    Mutant("multi_view.py", "(sharpness * distances)", "(-sharpness * distances)",
           "test_attraction.py::test_cacrs_two_terms_are_the_references_numbers", "CACR pulls near views more"),
    Mutant("multi_view.py", "(-sharpness * distances)", "(sharpness * distances)",
           "test_attraction.py::test_cacrs_two_terms_are_the_references_numbers", "CACR pushes far images more"),
    Mutant("methods/cacr.py", "q[:g] + q[g + 1:]", "q",
           "test_attraction.py::test_cacr_on_moco_v3_weighs_the_queries_of_each_key_by_their_distance",
           "in CACR on MoCo v3 a view finds its own key"),
    Mutant("methods/groco.py", "start = layer % 2", "start = 0",
           "test_attraction.py::test_each_score_ends_somewhere_and_each_place_is_filled",
           "GroCo's network never compares odd neighbours"),
    Mutant("methods/groco.py", "z[g].detach()", "z[g]",
           "test_attraction.py::test_groco_sorts_large_views_of_the_image_above_the_nearest_images_of_the_same_view",
           "a gradient reaches GroCo's positives"),
    Mutant("mixing.py", "torch.lerp(key, query, share", "torch.lerp(query, key, share",
           "test_transformed.py::test_an_extrapolated_pair_has_the_references_cosine", "FT swaps queries and keys"),
    Mutant("methods/ft.py", "1 + self.extrapolations", "self.extrapolations",
           "test_transformed.py::test_ft_contrasts_extrapolated_pairs_with_interpolated_keys_and_remembers_the_keys_as_"
           "they_are", "FT draws pairs together"),
    Mutant("methods/halp.py", "(batch.progress >= self.start)", "(batch.progress > self.start)",
           "test_transformed.py::test_halp_adds_the_cosines_of_positives_that_keep_their_prototype",
           "HaLP's positives join a step late"),
    Mutant("clusters.py", "(empty.cumsum(0) - 1)", "(empty.cumsum(0) * 0)",
           "test_transformed.py::test_prototypes_take_a_step_of_spherical_k_means_and_empty_ones_start_again",
           "all empty prototypes become one key"),
    Mutant("quality.py", "cosines[..., 0] - cosines[..., 1]", "cosines[..., 0] + cosines[..., 1]",
           "test_genview.py::test_alike_foregrounds_before_other_backgrounds_weigh_more",
           "alike backgrounds make a pair good"),
    Mutant("quality.py", "skewness < 0", "skewness > 0",
           "test_genview.py::test_the_principal_axis_is_that_of_greatest_variance_and_points_to_the_fewer_cells",
           "the larger part of a picture is its foreground"),
    Mutant("methods/genview.py", "super().train(False)", "super().train(mode)",
           "test_genview.py::test_a_judge_is_frozen_and_in_no_checkpoint", "a judge's BatchNorm learns"),
    Mutant("methods/pixpro.py", "target[0][0], matches.mT)", "target[0][0], matches)",
           "test_methods.py::test_pixpro_agrees_at_the_same_place_in_both_directions",
           "the way back has transposed matches"),
    Mutant("methods/pixpro.py", ") < self.threshold", ") <= self.threshold",
           "test_methods.py::test_cells_exactly_at_the_threshold_do_not_match", "cells at the threshold match"),
    Mutant("methods/pixcontrast.py", ") < self.threshold", ") <= self.threshold",
           "test_methods.py::test_cells_exactly_at_the_threshold_do_not_match", "cells at the threshold match"),
    Mutant("methods/pixpro.py", "x.detach()))", "x))",
           "test_methods.py::test_no_gradient_reaches_the_target_cells", "a gradient reaches the target"),
    Mutant("methods/amcl.py", "torch.stack(losses).sum()", "torch.stack(losses).mean()",
           "test_methods.py::test_amcl_adds_heads_of_one_network_of_temperatures", "heads' losses are averaged"),
    Mutant("methods/amcl_moco.py", "torch.stack(losses).sum() / 2", "torch.stack(losses).sum()",
           "test_methods.py::"
           "test_amcl_on_a_queue_adds_heads_with_a_queue_each_and_takes_the_mean_of_both_directions",
           "both directions are added"),
    Mutant("methods/amcl_barlow_twins.py", "len(u) ** 0.5", "len(u)",
           "test_methods.py::test_amcl_barlow_twins_is_its_sums_with_temperatures_of_unit_outputs",
           "outputs are shorter than 1"),
    Mutant("clusters.py", "unit(torch.lerp(former, features.to(former.dtype), share))",
           "unit(torch.lerp(features.to(former.dtype), former, share))",
           "test_groups.py::"
           "test_a_bank_takes_a_share_of_new_features_and_finds_their_clusters_once_there_are_any",
           "a bank's share is the former feature's"),
    Mutant("clusters.py", "(clusters >= 0) & (clusters != own[:, None])",
           "(clusters >= 0) & (clusters != -2 + 0 * own[:, None])",
           "test_groups.py::"
           "test_negatives_are_drawn_from_their_pool_of_other_clusters",
           "a query's own cluster is among its negatives"),
    Mutant("clusters.py", "order[first + numbers[:, 0] % (end - first)]",
           "order[first]",
           "test_groups.py::"
           "test_positives_are_all_members_of_the_querys_cluster_equally_often",
           "positives are always the same"),
    Mutant("clusters.py", "small = counts < smallest",
           "small = counts < 1",
           "test_groups.py::"
           "test_no_cluster_is_small_after_the_repair_where_there_are_twice_as_many_rows_as_it_takes",
           "small clusters stay"),
    Mutant("clusters.py", "return unit(distributed.gather(sums[None]).sum(0))",
           "return unit(sums)",
           "test_groups.py::"
           "test_two_processes_share_the_work_of_kmeans_and_find_what_one_does",
           "each process averages its own rows"),
    Mutant("methods/interclr.py", "drawn.positive - self.margin",
           "drawn.positive + self.margin",
           "test_groups.py::"
           "test_interclr_weighs_moco_and_a_contrast_with_the_bank",
           "the margin has the other sign"),
    Mutant("methods/slotcon.py", "self.slot_loss(online[0], target[1])",
           "self.slot_loss(online[0], target[0])",
           "test_groups.py::"
           "test_slotcon_is_its_two_sums",
           "a view's slots find its own"),
    Mutant("methods/slotcon.py", "nearest_to_some(scores) * nearest_there",
           "nearest_to_some(scores)",
           "test_groups.py::"
           "test_slotcon_is_its_two_sums",
           "slots that only one view has are queries"),
    Mutant("slots.py", '.masked_fill(absent, float("-inf"))',
           "",
           "test_groups.py::"
           "test_slots_that_no_cell_is_nearest_to_are_no_queries_and_no_keys",
           "slots without cells are keys"),
    Mutant("vocabulary.py", "found = bag(distances, self.sharpness / self.distance)",
           "found = bag(distances, self.sharpness)",
           "test_groups.py::"
           "test_a_vocabulary_learns_a_place_of_each_map_after_the_bags",
           "sharpness does not follow the distances"),
    Mutant("vocabulary.py", ".softmax(1).amax(2)",
           ".softmax(1).mean(2)",
           "test_groups.py::"
           "test_a_bag_is_the_best_place_of_each_word",
           "bags are means over places"),
    Mutant("methods/obow.py", "if v != t:",
           "if True:",
           "test_groups.py::"
           "test_obow_predicts_bags_of_each_level_and_adds_sizes",
           "a view predicts its own bag"),
    Mutant("methods/wmse.py", "z.mean(1, keepdim=True)", "z.mean((0, 1), keepdim=True)",
           "test_bases.py::test_whitened_rows_have_no_mean_and_the_identity_as_covariance_whatever_they_were_mixed_of",
           "views are whitened about their common mean"),
    Mutant("methods/wmse.py", "failed[:, None, None] > 0", "failed[:, None, None] > 99",
           "test_bases.py::test_wmse_of_a_collapsed_batch_is_nan_for_the_run_to_stop_at",
           "a covariance without an inverse goes unnoticed"),
    Mutant("methods/wmse.py", "torch.cat(distances).mean()", "torch.cat(distances[:1]).mean()",
           "test_bases.py::test_wmse_compares_all_views_of_slices_that_are_whitened_view_by_view",
           "only the first slice counts"),
]


def prepared(folder: Path) -> Path:
    """A copy of the package and its tests."""
    for name in ("ssl_zoo", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def answer(folder: Path, tests: list[str]) -> None:
    """Run tests of a copy in this process, which ends with pytest's status."""
    said = os.open(folder / "said.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(said, 1)
    os.dup2(said, 2)
    os.chdir(folder)
    for name in [name for name in sys.modules if name.partition(".")[0] in ("ssl_zoo", "tests", "record")]:
        del sys.modules[name]
    sys.path.insert(0, str(folder))
    os.environ["PYTHONPATH"] = str(folder)
    sys.dont_write_bytecode = True     # a file restored within a second would keep the bytecode of its mutant
    torch.set_num_threads(1)
    torch.multiprocessing.spawn = functools.partial(torch.multiprocessing.start_processes, start_method="fork")
    sys.exit(int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-o", "addopts=", *tests])))


def status(folder: Path, *tests: str) -> int:
    """pytest's status for tests of a copy; no other than passed and failed is an answer."""
    process = FORK.Process(target=answer, args=(folder, [f"tests/{test}" for test in tests]))
    process.start()
    process.join(60 * MINUTES)
    if process.exitcode not in (PASSED, FAILED):
        process.kill()
        raise SystemExit(f"pytest ended with {process.exitcode} on {tests}:\n{(folder / 'said.txt').read_text()}")
    return process.exitcode


def killed(folder: Path, mutant: Mutant) -> bool:
    path = folder / "ssl_zoo" / mutant.file
    text = path.read_text()
    path.write_text(text.replace(mutant.old, mutant.new))
    try:
        return status(folder, mutant.test) == FAILED
    finally:
        path.write_text(text)


def work(folder: Path, mutants: list[Mutant], results: Connection) -> None:
    prepared(folder)
    if status(folder, *dict.fromkeys(mutant.test for mutant in mutants)) != PASSED:
        raise SystemExit(f"tests fail on the package as it is:\n{(folder / 'said.txt').read_text()}")
    for mutant in mutants:
        results.send((mutant, killed(folder, mutant)))


def tried(mutants: list[Mutant]) -> Iterator[tuple[Mutant, bool]]:
    """Each mutant, and whether it was killed, as soon as that is known; AT_ONCE of them are tried at a time."""
    with tempfile.TemporaryDirectory() as place:
        ends: dict[Connection, multiprocessing.process.BaseProcess] = {}
        for i in range(min(AT_ONCE, len(mutants))):
            here, there = FORK.Pipe(duplex=False)
            process = FORK.Process(target=work, args=(Path(place) / str(i), mutants[i::AT_ONCE], there))
            process.start()
            there.close()
            ends[here] = process
        while ends:
            for end in wait(list(ends)):
                try:
                    yield end.recv()
                except EOFError:
                    process = ends.pop(end)
                    process.join()
                    if process.exitcode:
                        raise SystemExit(1) from None


def main() -> None:
    word = sys.argv[1] if len(sys.argv) > 1 else ""
    mutants = [mutant for mutant in MUTANTS if word in f"{mutant.file} {mutant.breaks}"]
    for mutant in mutants:
        found = (ROOT / "ssl_zoo" / mutant.file).read_text().count(mutant.old)
        if found != 1:
            raise SystemExit(f"{mutant.file} has {mutant.old!r} {found} times, not once: repair the mutant")
    print("| file | what breaks | test | |\n|---|---|---|---|")
    dead = {}
    for mutant, dead[mutant] in tried(mutants):
        outcome = "killed" if dead[mutant] else "**survived**"
        print(f"| {mutant.file} | {mutant.breaks} | {mutant.test} | {outcome} |", flush=True)
    survived = list(dead.values()).count(False)
    print(f"\n{len(dead) - survived} of {len(dead)} killed, {survived} survived")
    if not word:
        record("mutants", {"killed": len(dead) - survived, "survived": survived, "mutants": [
            {"file": mutant.file, "breaks": mutant.breaks, "test": mutant.test, "killed": dead[mutant]}
            for mutant in mutants]})


if __name__ == "__main__":
    main()
