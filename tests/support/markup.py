"""A page of HTML, read as a browser reads it: what is in it, and that its elements are closed."""
import base64
import html.parser
import re

import numpy as np

VOID = {'link', 'meta', 'img', 'wbr'}  # of the HTML that is written here
SPACE = re.compile(r'\s+')


class Page(html.parser.HTMLParser):
  """Raises AssertionError for elements that are not closed in order, ids that are there twice,
  pictures without a text, and whatever a browser would load from outside."""

  def __init__(self, text: str):
    super().__init__()
    self.tags, self.ids, self.headings, self.labels = set(), set(), [], []
    self.images = {}  # alternative text -> the file
    self.rows = []    # of all tables, as lists of their cells
    self.paths = []   # points [n, 2] of the lines of charts
    self._open, self._texts, self._links = [], [], set()
    assert text.startswith('<!DOCTYPE html>\n<html lang=')
    assert not re.search(r'@import|url\(', text)
    self.feed(text)
    self.close()
    assert not self._open, f'not closed: {self._open}'
    assert self._links <= self.ids, 'links to nowhere'
    assert self.headings.count('h1') == 1
    self.text = SPACE.sub(' ', ' '.join(self._texts))

  def handle_starttag(self, tag, attrs):
    self._element(tag, attrs)
    if tag not in VOID:
      self._open.append(tag)

  def handle_startendtag(self, tag, attrs):
    assert 'svg' in self._open, f'<{tag}/> is no HTML'
    self._element(tag, attrs)

  def handle_endtag(self, tag):
    assert self._open and self._open[-1] == tag, f'</{tag}> within {self._open}'
    self._open.pop()

  def handle_data(self, data):
    if self._open and self._open[-1] not in ('style', 'script'):
      self._texts.append(data)
      if self._open[-1] in ('td', 'th'):
        self.rows[-1][-1] += data

  def _element(self, tag, attrs):
    of = dict(attrs)
    assert len(of) == len(attrs), f'<{tag}> has an attribute twice'
    self.tags.add(tag)
    self._outside(tag, of)
    if 'id' in of:
      assert of['id'] not in self.ids
      self.ids.add(of['id'])
    if re.fullmatch('h[1-6]', tag):
      self.headings.append(tag)
    if 'aria-label' in of:
      self.labels.append(of['aria-label'])
    if tag == 'tr':
      self.rows.append([])
    if tag in ('td', 'th'):
      self.rows[-1].append('')
    if tag == 'img':
      assert of['alt']
      kind, _, data = of['src'].partition(';base64,')
      assert kind == 'data:image/png'
      self.images[of['alt']] = base64.b64decode(data, validate=True)
    if tag == 'path' and of['d'] != 'M0 4H24':  # of a key
      self.paths.append(np.array([point.split() for point in re.split('[ML]', of['d'])[1:]], float))

  def _outside(self, tag, of):
    assert tag not in ('script', 'iframe', 'object', 'embed', 'form', 'base')
    assert not any(name.startswith('on') or name in ('srcset', 'style') for name in of)
    assert of.get('src', 'data:').startswith('data:')
    link = of.get('href') or of.get('xlink:href') or 'data:'
    if link.startswith('#'):
      self._links.add(link[1:])
    else:
      assert link.startswith('data:')
